"""What a session proposes, and how it learns that it is gone."""

from __future__ import annotations

import pytest

from conveyord.core.state.codec import Codec, encode_reply
from conveyord.core.state.commands import ConfigPut, Envelope, ProtocolRaise, SessionOpen
from conveyord.core.state.machine import MACHINE
from conveyord.core.state.proposing import Request, SessionWriter
from conveyord.core.state.replies import No, Ok

CODEC = Codec(MACHINE.commands)
WRITER = SessionWriter(CODEC, "node:n1")


def test_a_session_is_opened() -> None:
    assert CODEC.decode(WRITER.register()) == Envelope(0, 0, 0, 0, "node:n1", SessionOpen())


def test_a_command_carries_its_number() -> None:
    data = WRITER.command(7, 3, 2, Request(ConfigPut("a", b"1"), "token:t", 1_000))
    assert CODEC.decode(data) == Envelope(7, 3, 2, 1_000, "token:t", ConfigPut("a", b"1"))


def test_a_command_of_no_session_may_be_repeated() -> None:
    data = WRITER.alone(Request(ProtocolRaise(1), "node:n1", 5))
    assert CODEC.decode(data) == Envelope(0, 0, 0, 5, "node:n1", ProtocolRaise(1))
    with pytest.raises(AssertionError):
        WRITER.alone(Request(ConfigPut("a", b"1"), "node:n1", 5))


def test_a_session_that_is_gone_is_told_by_its_code() -> None:
    assert WRITER.is_expired(encode_reply(No("SESSION_EXPIRED", "why")))
    assert not WRITER.is_expired(encode_reply(No("SESSION_WINDOW", "why")))
    assert not WRITER.is_expired(encode_reply(Ok(3)))
