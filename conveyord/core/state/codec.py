"""Envelopes and replies as msgpack: the data of an entry, and what applying it gives back.

    [session, number, ack_below, at_ms, actor, [tag, field, …]]
    [0, value] or [1, code, message]

Nothing is skipped that is not known: a replica that did would differ from the others without anybody noticing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import msgspec

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.state.commands import Command, Envelope
from conveyord.core.state.replies import No, Ok, Reply

_ENCODER = msgspec.msgpack.Encoder()
_REPLIES: msgspec.msgpack.Decoder[Ok | No] = msgspec.msgpack.Decoder(Ok | No)


class Codec:
    """For the commands of one program."""

    def __init__(self, commands: Sequence[type[Command]]) -> None:
        envelope: Any = Envelope[Union[tuple(commands)]]  # type: ignore[misc]  # noqa: UP007
        self._decoder: msgspec.msgpack.Decoder[Envelope[Any]] = msgspec.msgpack.Decoder(envelope)
        self._tags = {command.operation() for command in commands}

    def encode(self, envelope: Envelope[Any]) -> bytes:
        """The data of an entry. Raises ConfigError for what could not be decoded again, such as a number too large."""
        try:
            data = _ENCODER.encode(envelope)
            self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, TypeError) as error:
            raise ConfigError(f"{envelope.command.operation()}: {error}; this cannot be proposed") from error
        return data

    def decode(self, data: bytes) -> Envelope[Any]:
        """The inverse of `encode`. Raises Refused for what this program does not know: the node must stop at it."""
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(self._unknown(data, error)) from error

    def _unknown(self, data: bytes, error: Exception) -> str:
        try:
            tag = msgspec.msgpack.decode(data)[5][0]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError, KeyError, TypeError):
            tag = None
        what = f"the command {tag!r}" if isinstance(tag, str) and tag not in self._tags else f"a command ({error})"
        return f"the log has {what} that this conveyord does not know; upgrade this node to the version of the others"


def encode_reply(reply: Reply) -> bytes:
    """What applying an entry gives back."""
    return _ENCODER.encode(reply)


def decode_reply(data: bytes) -> Reply:
    """The inverse of `encode_reply`. Raises Refused if it is none, as that of an entry which is no command."""
    try:
        return _REPLIES.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"this is no reply to a command ({error}); ask a node of the same version") from error
