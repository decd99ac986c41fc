"""How who proposes writes commands of a session, and tells by a reply that the session is gone."""

from __future__ import annotations

from msgspec import Struct

from conveyord.core.raft.sessions import SessionExpired
from conveyord.core.state.codec import Codec, decode_reply
from conveyord.core.state.commands import Command, Envelope, SessionOpen
from conveyord.core.state.replies import No


class Request(Struct, frozen=True, gc=False):
    """A command, on whose behalf it is, and the Unix time by the clock of who proposes it."""

    command: Command
    actor: str
    at_ms: int


class SessionWriter:
    """Writes what a session proposes."""

    def __init__(self, codec: Codec, actor: str) -> None:
        """actor: on whose behalf sessions are opened, such as the id of the node."""
        self._codec = codec
        self._actor = actor

    def register(self) -> bytes:
        """The command that opens a session: its index is the session."""
        return self._codec.encode(Envelope(0, 0, 0, 0, self._actor, SessionOpen()))

    def command(self, session: int, number: int, ack_below: int, command: Request) -> bytes:
        """A command with its number; ack_below: the lowest number whose reply is still waited for.

        Raises ConfigError for one that no node could read, such as a name that is far too long.
        """
        envelope = Envelope(session, number, ack_below, command.at_ms, command.actor, command.command)
        return self._codec.encode(envelope)

    def about(self, command: Request) -> str | None:
        """The object that it is about, if others may share its entry."""
        return command.command.about

    def alone(self, command: Request) -> bytes:
        """A command that may be repeated, without a session."""
        assert command.command.is_repeatable, command
        return self.command(0, 0, 0, command)

    def is_expired(self, reply: bytes) -> bool:
        """Whether a reply says that the session is not known any more."""
        decoded = decode_reply(reply)
        return isinstance(decoded, No) and decoded.code == SessionExpired.code
