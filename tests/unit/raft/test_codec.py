"""Messages as bytes: each kind comes back as it was, and anything else is refused."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conveyord.core.errors import Refused
from conveyord.core.raft.codec import KINDS, decode, encode
from conveyord.core.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from conveyord.core.raft.types import ROOT_CHAIN, Entry, Kind, make_entry

ENTRIES = (make_entry(ROOT_CHAIN, 8, 3, Kind.COMMAND, b"\x00x"), make_entry(b"12345678", 9, 3, Kind.MEMBERSHIP, b""))
ONE_OF_EACH = (
    (VoteRequest("a", "b", 3, 7, 2, pre=True), "00 97a161a16203 0702c3c2"),
    (VoteReply("a", "b", 3, granted=True), "01 95a161a16203 c3c2"),
    (Append("a", "b", 3, 7, 2, ENTRIES[:1], 6), None),
    (AppendReply("a", "b", 3, 9, rejected=True, hint_index=4, hint_term=1), "03 97a161a16203 09c30401"),
    (Heartbeat("a", "b", 3, 6, 11), "04 95a161a16203 060b"),
    (HeartbeatReply("a", "b", 3, 11), "05 94a161a16203 0b"),
    (TimeoutNow("a", "b", 3), "06 93a161a16203"),
    (ReadRequest("a", "b", 3, 1 << 48), "07 94a161a16203 cf0001000000000000"),
    (ReadReply("a", "b", 3, 5, None), "08 95a161a16203 05c0"),
)


@pytest.mark.parametrize(("message", "known"), ONE_OF_EACH, ids=[kind.__name__ for kind in KINDS])
def test_a_message_comes_back_and_its_bytes_stay_what_they_are(message: Message, known: str | None) -> None:
    """Other versions read them: a change of the bytes is a change of the protocol."""
    assert decode(encode(message)) == message
    assert known is None or encode(message) == bytes.fromhex(known)


def test_entries_come_back_with_their_types() -> None:
    message = decode(encode(Append("a", "b", 3, 7, 2, ENTRIES, 6)))
    assert isinstance(message, Append)
    assert message.entries == ENTRIES
    assert all(type(entry) is Entry and type(entry.kind) is Kind for entry in message.entries)


def test_fields_of_a_newer_version_are_passed_over() -> None:
    longer = bytes((6,)) + msgspec.msgpack.encode(["a", "b", 3, "more"])
    assert decode(longer) == TimeoutNow("a", "b", 3)


@given(st.binary(max_size=40))
@example(b"\x00\x97\xa1\x80")  # a name that is no UTF-8
def test_anything_else_is_refused(data: bytes) -> None:
    with suppress(Refused):
        found = decode(data)
        assert decode(encode(found)) == found


@given(st.sampled_from([message for message, _ in ONE_OF_EACH]), st.data())
def test_a_message_that_was_cut_is_refused(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(Refused):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
