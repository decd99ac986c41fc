"""The codec of frames: any cut of the bytes gives the same frames, and nothing that comes does harm."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.wire import frames, heads
from conveyord.core.wire.frames import LARGE_BYTES, MAGIC, PREFIX, PREFIX_BYTES, FrameDecoder, opening
from conveyord.core.wire.heads import (
    AnyHead,
    Cancel,
    Credit,
    End,
    Error,
    FrameRefused,
    Goodbye,
    Hello,
    Item,
    Message,
    Ping,
    Pong,
    Reply,
    Request,
    common_protocol,
)

LIMIT = 4 * LARGE_BYTES
HELLO = Hello(1, 3, "c1", "n1", 7, "rpc", "secret", "conveyord 1", 1000, 10)
NUMBERS = st.integers(0, heads.NUMBER_MAX)
IDS = st.integers(1, heads.NUMBER_MAX)
NAMES = st.text(max_size=20)
METHODS = st.text(min_size=1, max_size=20)
PAYLOADS = st.binary(max_size=300) | st.just(bytes(LARGE_BYTES + 5))
HEADS = st.one_of(
    st.builds(
        Hello, NUMBERS, NUMBERS, st.none() | NAMES, NAMES, NUMBERS, NAMES, st.none() | NAMES, NAMES, NUMBERS, NUMBERS
    ),
    st.builds(Goodbye, NAMES, NAMES),
    st.builds(Ping, NUMBERS),
    st.builds(Pong, NUMBERS),
    st.builds(Request, IDS, METHODS, st.none() | NUMBERS, PAYLOADS, NUMBERS, NUMBERS),
    st.builds(Reply, IDS, PAYLOADS),
    st.builds(Error, IDS, NAMES, NAMES),
    st.builds(Message, METHODS, PAYLOADS),
    st.builds(Item, IDS, PAYLOADS),
    st.builds(End, IDS),
    st.builds(Credit, IDS, NUMBERS, NUMBERS),
    st.builds(Cancel, IDS),
)
FRAMES = st.lists(st.tuples(HEADS, PAYLOADS), max_size=6)
CUTS = st.lists(st.integers(1, 3 * LARGE_BYTES), max_size=40)


def encoded(sent: list[tuple[AnyHead, bytes]]) -> bytes:
    return b"".join(opening(head, len(body)) + body for head, body in sent)


def decoded(decoder: FrameDecoder, data: bytes, cuts: list[int]) -> list[tuple[AnyHead, bytes]]:
    found = []
    for size in [*cuts, len(data)]:
        found += decoder.receive(data[:size])
        data = data[size:]
    assert not data
    return [(head, bytes(body)) for head, body in found]


def outcome(data: bytes, cuts: list[int], limit: int = LIMIT) -> tuple[list[tuple[AnyHead, bytes]], str | None]:
    """What comes of the bytes: frames, and then the reason of a refusal."""
    decoder = FrameDecoder(limit)
    found: list[tuple[AnyHead, bytes]] = []
    try:
        for size in [*cuts, len(data)]:
            found += [(head, bytes(body)) for head, body in decoder.receive(data[:size])]
            data = data[size:]
        decoder.finish()
    except FrameRefused as refusal:
        return found, refusal.reason
    return found, None


@given(FRAMES, CUTS)
def test_any_cut_gives_the_same_frames(sent: list[tuple[AnyHead, bytes]], cuts: list[int]) -> None:
    decoder = FrameDecoder(LIMIT)
    assert decoded(decoder, encoded(sent), cuts) == sent
    decoder.finish()
    assert decoder.expected_bytes == 0


@given(st.lists(st.tuples(HEADS, st.binary(max_size=50)), min_size=1, max_size=4), st.data())
def test_bytes_one_by_one(sent: list[tuple[AnyHead, bytes]], data: st.DataObject) -> None:
    sent = [(head, body) for head, body in sent if len(opening(head)) < 1000]
    whole = encoded(sent)
    assert outcome(whole, [1] * len(whole)) == (sent, None)


@given(FRAMES, CUTS, st.integers(min_value=1))
def test_a_stream_that_ends_early_is_truncated(
    sent: list[tuple[AnyHead, bytes]], cuts: list[int], missing: int
) -> None:
    whole = encoded(sent)
    if not whole:
        return
    cut = whole[: -(missing % len(whole) or 1)]
    found, reason = outcome(cut, cuts)
    assert found == sent[: len(found)]
    assert reason == (None if encoded(found) == cut else "truncated")


@given(FRAMES, st.binary(min_size=12, max_size=200), CUTS)
def test_what_follows_frames_is_refused_the_same_way_however_it_is_cut(
    sent: list[tuple[AnyHead, bytes]], junk: bytes, cuts: list[int]
) -> None:
    whole = encoded(sent) + junk
    assert outcome(whole, cuts) == outcome(whole, [])
    assert outcome(whole, cuts)[0][: len(sent)] == sent


@given(st.lists(st.tuples(HEADS, st.binary(max_size=20)), min_size=1, max_size=3), st.data())
def test_flipped_bytes_never_crash(sent: list[tuple[AnyHead, bytes]], data: st.DataObject) -> None:
    broken = bytearray(encoded(sent))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(broken), [])


@given(st.binary(max_size=300))
def test_any_head_is_read_or_refused(head: bytes) -> None:
    _, reason = outcome(PREFIX.pack(MAGIC, len(head), 0) + head, [])
    assert reason in {None, "malformed_head", "unknown_kind"}


REFUSED = {
    "magic": b"GET / HTTP/1.1\r\n\r\n",
    "oversize": PREFIX.pack(MAGIC, 4, LIMIT),
    "malformed_head": PREFIX.pack(MAGIC, 0, 0),
    "truncated": MAGIC,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refusal_says_why(reason: str) -> None:
    assert outcome(REFUSED[reason], []) == ([], reason)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\x92\x0d\x01", "unknown_kind"),
        (b"\xdc\x00\x02\x7f\x01", "unknown_kind"),
        (b"\xdd\x00\x00\x00\x02\x63\x01", "unknown_kind"),
        (b"\x90", "malformed_head"),
        (b"\x91\xc0", "malformed_head"),
        (b"\x91\x05", "malformed_head"),
        (b"\x93\x05\x00\xa1m", "malformed_head"),  # id 0
        (b"\x93\x05\x01\xa0", "malformed_head"),  # a method without a name
        (b"\x93\x05\x01\xa1\xff", "malformed_head"),  # not UTF-8
        (b"\xdd\xff\xff\xff\xff\x05\x01\xa1m", "malformed_head"),
        (b"\xdc\x00\x07\x05\x01\xa1m\xc0\xc4\x00\x00" + b"\x91" * 20_000, "malformed_head"),
        (b"\x92\x06\x01\xc0", "malformed_head"),  # bytes behind the array
    ],
)
def test_a_head_that_is_wrong_is_refused(head: bytes, reason: str) -> None:
    assert outcome(PREFIX.pack(MAGIC, len(head), 0) + head, []) == ([], reason)


def test_a_refusal_stays() -> None:
    decoder = FrameDecoder(LIMIT)
    assert decoder.receive(opening(Ping(1)) + b"x" * PREFIX_BYTES) == [(Ping(1), b"")]
    for _ in range(2):
        with pytest.raises(FrameRefused, match="another protocol"):
            decoder.room()
    with pytest.raises(FrameRefused):
        decoder.finish()


def test_nothing_is_allocated_for_a_frame_that_is_too_large() -> None:
    allocated: list[int] = []

    def allocate(size: int) -> bytearray:
        allocated.append(size)
        return bytearray(size)

    decoder = FrameDecoder(LIMIT, allocate=allocate)
    decoder.receive(PREFIX.pack(MAGIC, 10, 2**32 - 1))
    with pytest.raises(FrameRefused, match="at most"):
        decoder.room()
    assert allocated == []


@given(
    st.lists(
        st.sampled_from([MAGIC, b"\x00\x00\x00\x05", b"\xff\xff\xff\xff", b"\x00\x02\x00\x00", b"\xdd\xff"]),
        max_size=60,
    )
)
def test_no_more_is_allocated_than_a_frame_may_have(pieces: list[bytes]) -> None:
    allocated: list[int] = []

    def allocate(size: int) -> bytearray:
        allocated.append(size)
        return bytearray(size)

    decoder = FrameDecoder(LIMIT, allocate=allocate)
    try:
        for piece in pieces:
            decoder.receive(piece)
    except FrameRefused:
        pass
    assert all(size <= LIMIT + frames.BODY_ALIGNMENT for size in allocated)


def test_a_head_with_a_huge_length_inside_allocates_nothing() -> None:
    head = b"\x93\x06\x01\xc6\xff\xff\xff\xff"
    tracemalloc.start()
    try:
        assert outcome(PREFIX.pack(MAGIC, len(head), 0) + head, []) == ([], "malformed_head")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_large_body_is_received_where_it_stays() -> None:
    decoder = FrameDecoder(LIMIT)
    body = bytes(range(256)) * (LARGE_BYTES // 128)
    assert decoder.receive(opening(Reply(1), len(body)) + body[:100]) == []
    room = decoder.room()
    assert len(room) == len(body) - 100
    room[:] = body[100:]
    [(head, received)] = decoder.filled(len(room))
    assert head == Reply(1)
    assert isinstance(received, memoryview)
    assert received == body
    assert received.obj is room.obj


def test_fields_of_a_later_version_are_skipped() -> None:
    head = msgspec.msgpack.encode([6, 9, b"payload", {"later": [1, 2]}, "more"])
    assert outcome(PREFIX.pack(MAGIC, len(head), 0) + head, []) == ([(Reply(9, b"payload"), b"")], None)


def test_fields_that_an_earlier_version_does_not_send_have_defaults() -> None:
    head = msgspec.msgpack.encode([1, 1, 1, None, "n1", 4, "rpc"])
    assert outcome(PREFIX.pack(MAGIC, len(head), 0) + head, []) == ([(Hello(1, 1, None, "n1", 4, "rpc"), b"")], None)


@pytest.mark.parametrize(
    ("mine", "theirs", "common"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((2, 2), (1, 1), None), ((1, 2), (3, 4), None), ((3, 3), (1, 9), 3)],
)
def test_the_highest_common_version_is_spoken(
    mine: tuple[int, int], theirs: tuple[int, int], common: int | None
) -> None:
    assert common_protocol(mine, theirs) == common_protocol(theirs, mine) == common


def test_every_kind_has_its_number() -> None:
    kinds = AnyHead.__args__
    assert [kind.__struct_config__.tag for kind in kinds] == list(heads.KINDS)
    assert decoded(FrameDecoder(LIMIT), opening(HELLO), []) == [(HELLO, b"")]


def test_the_examples_of_the_specification() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
    lines = text.partition("```hex\n")[2].partition("```")[0].splitlines()
    examples = [
        (Hello(1, 1, "c-1", "n1", 3, "rpc", None, "conveyord 0.7", 16 * 1024 * 1024, 1024), b""),
        (Request(7, "echo", 1500, b"\x93\x01\x02\x03"), b"ARROW1"),
        (Reply(7, b"\xc3"), b""),
        (Credit(9, 128, 4 * 1024 * 1024), b""),
    ]
    assert [bytes.fromhex(line) for line in lines] == [encoded([example]) for example in examples]
    assert decoded(FrameDecoder(LIMIT), b"".join(map(bytes.fromhex, lines)), []) == examples


def test_the_specification_has_every_kind_with_its_fields() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
    for number, kind in zip(heads.KINDS, AnyHead.__args__, strict=True):
        row = re.search(rf"^\| {number} {kind.__name__.lower()} \| `\[{number}, (.*)\]`", text, re.MULTILINE)
        assert row is not None
        named = [field.removesuffix(" or nil").replace("sentence", "message") for field in row[1].split(", ")]
        assert named == list(kind.__struct_fields__)
