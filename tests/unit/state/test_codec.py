"""Envelopes and replies as bytes: these are what the log of every cluster has, so they never change."""

from __future__ import annotations

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.state.codec import Codec, decode_reply, encode_reply
from conveyord.core.state.commands import (
    COUNT_MAX,
    ClusterForm,
    ClusterRestored,
    Command,
    ConfigDelete,
    ConfigPut,
    Envelope,
    MemberForget,
    MemberJoin,
    MemberState,
    ProtocolRaise,
    SessionOpen,
    SettingChange,
    TokenCreate,
    TokenDelete,
    TokenRevoke,
)
from conveyord.core.state.machine import HANDLERS, MACHINE
from conveyord.core.state.replies import No, Ok

CODEC = Codec(MACHINE.commands)

GOLDEN = [
    (SessionOpen(), ["session.open"]),
    (ClusterForm("c1", 2), ["cluster.form", "c1", 2]),
    (ClusterRestored("h2"), ["cluster.restored", "h2"]),
    (ProtocolRaise(3), ["cluster.protocol", 3]),
    (SettingChange("audit_max", 50, 7), ["setting.change", "audit_max", 50, 7]),
    (
        MemberJoin("n1", "a:1", "a:2", ("builder", "router"), "1.0", 1, 2, 9),
        ["member.join", "n1", "a:1", "a:2", ["builder", "router"], "1.0", 1, 2, 9],
    ),
    (MemberState("n1", 9, "ready"), ["member.state", "n1", 9, "ready", None]),
    (MemberForget("n1", 4), ["member.forget", "n1", 4]),
    (ConfigPut("a/b", b"\xff", 0), ["config.put", "a/b", b"\xff", 0]),
    (ConfigDelete("a/b"), ["config.delete", "a/b", None]),
    (TokenCreate("t", "who", "admin", b"s", b"h", 5), ["token.create", "t", "who", "admin", b"s", b"h", 5]),
    (TokenRevoke("t", True), ["token.revoke", "t", True]),
    (TokenDelete("t"), ["token.delete", "t"]),
]


def envelope(command: Command) -> Envelope:
    return Envelope(17, 5, 3, 1_700_000_000_000, "token:a", command)


@pytest.mark.parametrize(("command", "parts"), GOLDEN, ids=lambda value: getattr(value, "operation", lambda: "")())
def test_a_command_is_written_as_it_always_was(command: Command, parts: list[object]) -> None:
    data = CODEC.encode(envelope(command))
    assert data == msgpack.packb([17, 5, 3, 1_700_000_000_000, "token:a", parts])
    assert CODEC.decode(data) == envelope(command)


def test_every_command_is_above() -> None:
    assert {type(command) for command, _ in GOLDEN} == set(HANDLERS)


def test_the_bytes_of_one_envelope() -> None:
    data = CODEC.encode(Envelope(1, 2, 1, 1_000, "op", ConfigPut("k", b"v", None)))
    assert data.hex() == "960102 01cd03e8a26f7094aa636f6e6669672e707574a16bc40176c0".replace(" ", "")


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        (Ok(7), [0, 7]),
        (Ok(), [0, None]),
        (Ok({"a": [1, b"x"]}), [0, {"a": [1, b"x"]}]),
        (No("A", "why"), [1, "A", "why"]),
    ],
)
def test_a_reply_is_written_as_it_always_was(reply: Ok | No, parts: list[object]) -> None:
    assert encode_reply(reply) == msgpack.packb(parts)
    assert decode_reply(encode_reply(reply)) == reply


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.packb([2, 1]), msgpack.packb([1, "A"]), b"\x91" * 2_000])
def test_what_is_no_reply_is_told(data: bytes) -> None:
    with pytest.raises(Refused, match="this is no reply to a command"):
        decode_reply(data)


def test_a_command_of_a_newer_version_stops_the_node() -> None:
    data = msgpack.packb([1, 1, 1, 0, "op", ["lease.grant", "x", 3]])
    with pytest.raises(Refused) as caught:
        CODEC.decode(data)
    assert str(caught.value) == (
        "the log has the command 'lease.grant' that this conveyord does not know; upgrade this node to the version of "
        "the others"
    )


@pytest.mark.parametrize(
    "parts",
    [
        [1, 1, 1, 0, "op", ["config.put", "k", b"v", None, "a field more"]],
        [1, 1, 1, 0, "op", ["config.put", "k"]],
        [1, 1, 1, 0, "op", ["config.put", "k", "text"]],
        [1, 1, 1, 0, "op", ["config.put", "k", b"v", -1]],
        [1, 1, 1, 0, "op", []],
        [1, 1, 1, 0, "op", {}],
        [1, 1, 1, 0, "op", ["config.delete", "k" * 1_025]],
        [1, 1, 1, 0, "o" * 257, ["session.open"]],
        [1, 1, 1, 2**63, "op", ["session.open"]],
        [1, 1, 1, 0, "op", ["session.open"], "a field more"],
        [1, 1, 1, 0, "op"],
        "text",
    ],
)
def test_a_known_command_that_is_not_as_known_stops_the_node_too(parts: object) -> None:
    with pytest.raises(Refused, match=r"^the log has .* upgrade this node to the version of the others$"):
        CODEC.decode(msgpack.packb(parts))


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers(0, 9) | st.text(), st.lists).map(msgpack.packb))
def test_no_bytes_are_taken_for_what_they_are_not(data: bytes) -> None:
    try:
        found = CODEC.decode(data)
    except Refused:
        return
    assert CODEC.decode(CODEC.encode(found)) == found


@pytest.mark.parametrize(
    "wrong",
    [
        envelope(ConfigDelete("\ud800")),
        envelope(ConfigDelete("k" * 2_000)),
        envelope(ConfigDelete("k", 2**63)),
        envelope(ConfigDelete("k", 2**70)),
        envelope(ConfigPut("k", "text")),  # type: ignore[arg-type]
        Envelope(-1, 1, 1, 0, "op", SessionOpen()),
        Envelope(1, 1, 1, 0, "o" * 300, SessionOpen()),
    ],
)
def test_what_no_node_could_read_cannot_be_proposed(wrong: Envelope) -> None:
    with pytest.raises(ConfigError, match="this cannot be proposed"):
        CODEC.encode(wrong)


def test_an_older_program_reads_what_it_knows_and_stops_at_the_rest() -> None:
    older = Codec([SessionOpen, ConfigPut])
    known = CODEC.encode(envelope(ConfigPut("k", b"v")))
    assert older.decode(known) == CODEC.decode(known)
    with pytest.raises(Refused, match="the command 'config.delete' that this conveyord does not know"):
        older.decode(CODEC.encode(envelope(ConfigDelete("k"))))


@given(
    st.builds(
        Envelope,
        st.integers(0, COUNT_MAX),
        st.integers(0, COUNT_MAX),
        st.integers(0, COUNT_MAX),
        st.integers(0, COUNT_MAX),
        st.text(max_size=20),
        st.builds(ConfigPut, st.text(max_size=20), st.binary(max_size=50), st.none() | st.integers(0, COUNT_MAX)),
    )
)
def test_what_can_be_encoded_comes_back(envelope: Envelope) -> None:
    assert CODEC.decode(CODEC.encode(envelope)) == envelope


def test_commands_are_told_apart_by_their_tags() -> None:
    tags = [command.operation() for command in HANDLERS]
    assert len(set(tags)) == len(tags)
    assert all(msgspec.structs.fields(command) is not None for command in HANDLERS)
