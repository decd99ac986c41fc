"""The HTTP server outlives whatever comes over a connection."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from conveyord.runtime.http_server import (
    HEAD_BYTES_MAX,
    Admit,
    Answer,
    Declined,
    Head,
    Held,
    HttpServer,
    Limits,
    problem,
)

LIMITS = Limits(1024, 4096, 4, head_seconds=1, piece_seconds=1, request_seconds=2)
HEAD = b"POST /a HTTP/1.1\r\nhost: x\r\n"
PIECES = st.sampled_from(
    [
        HEAD,
        b"POST /a HTTP/1.0\r\n",
        b"GET /a HTTP/1.1\r\nhost: x\r\n",
        b"HEAD * HTTP/1.1\r\nhost: x\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"content-length: 3\r\n",
        b"content-length: -3\r\n",
        b"content-length: 99999\r\n",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"connection: close\r\n",
        b"connection: upgrade\r\nupgrade: websocket\r\n",
        b"expect: 100-continue\r\n",
        b"\r\n",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"fffffffffffffffffffff\r\n",
        b"\x16\x03\x01\x02\x00",
        b"x" * 70_000,
    ]
)


def admit(head: Head) -> None:
    if head.method != "POST":
        raise problem(405, "METHOD_NOT_ALLOWED", "no")


async def respond(_: Head, held: Held) -> Answer:
    await trio.lowlevel.checkpoint()
    assert held.holdings.bytes == held.size == len(held.body)
    return Answer(200, held.body[::-1])


async def conversation(*pieces: bytes, admit: Admit = admit) -> bytes:
    """What the server says to a client that sends these pieces and then no more."""
    server = HttpServer(admit, respond, LIMITS)
    client, stream = trio.testing.memory_stream_pair()
    said = b""

    async def listen() -> None:
        nonlocal said
        async for data in client:
            said += data

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        nursery.start_soon(server.converse, stream)
        for piece in pieces:
            try:
                await client.send_all(piece)
            except trio.BrokenResourceError:
                break
            await trio.testing.wait_all_tasks_blocked()
        try:
            await client.send_eof()
        except trio.BrokenResourceError:
            pass
    assert server.held_bytes == 0
    return said


@given(st.lists(st.one_of(PIECES, PIECES, PIECES, st.binary(max_size=20)), max_size=8))
def test_whatever_comes_is_answered_or_let_go(pieces: list[bytes]) -> None:
    async def main() -> None:
        said = await conversation(*pieces)
        assert said == b"" or said.startswith(b"HTTP/1.1 ")
        assert b"bytearray" not in said

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@given(st.integers(0, 200), st.integers(1, 60))
def test_requests_are_the_same_however_they_are_cut(at: int, step: int) -> None:
    data = HEAD + b"content-length: 3\r\n\r\nabc" + HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
    pieces = [data[:at], *(data[first : first + step] for first in range(at, len(data), step))]

    async def main() -> None:
        said = await conversation(*filter(None, pieces))
        assert said.count(b"HTTP/1.1 200 ") == 2
        assert b"cba" in said
        assert said.endswith(b"ed")

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"content-length: 2000\r\n\r\n", 413),
        (HEAD + b"\r\n", 411),
        (HEAD + b"content-length: 5\r\n\r\nab", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"x" * 100_000, 431),
    ],
)
async def test_what_is_no_request_is_told_so_and_the_connection_ends(
    request_: bytes, status: int, autojump_clock: trio.testing.MockClock
) -> None:
    said = await conversation(request_)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in said


CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "code", "sentence", "instance"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400, "MALFORMED_REQUEST", "the first line is no request line", "*"),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400, "MALFORMED_REQUEST", "the first line is no request line", "*"),
        (b"GET /a HTTP/1.1\r\n\r\n", 400, "MALFORMED_REQUEST", "there is no Host header", "*"),
        (HEAD + b"host: y\r\n\r\n", 400, "MALFORMED_REQUEST", "there are several Host headers", "*"),
        (HEAD + b"no header\r\n\r\n", 400, "MALFORMED_REQUEST", "a line of the head is no header", "*"),
        (HEAD + b"a: \x00\r\n\r\n", 400, "MALFORMED_REQUEST", "a line of the head is no header", "*"),
        (HEAD + b"content-length: x\r\n\r\n", 400, "MALFORMED_REQUEST", "the Content-Length is no number", "*"),
        (HEAD + b"content-length: 1, 2\r\n\r\n", 400, "MALFORMED_REQUEST", "several Content-Length headers", "*"),
        (HEAD + CHUNKED + b"x\r\n", 400, "MALFORMED_REQUEST", "the body is not in proper chunks", "/a"),
        (HEAD + CHUNKED + b"1\r\nabc", 400, "MALFORMED_REQUEST", "the body is not in proper chunks", "/a"),
        (HEAD + b"content-length: 3\r\n\r\nab", 400, "MALFORMED_REQUEST", "before all of the body had come", "/a"),
        (HEAD + b"transfer-encoding: gzip\r\n\r\n", 501, "UNSUPPORTED_TRANSFER", "in a transfer encoding", "*"),
        (HEAD + b"\r\n", 411, "LENGTH_REQUIRED", "neither Content-Length nor", "/a"),
        (HEAD + b"content-length: 2000\r\n\r\n", 413, "TOO_LARGE", "more than 1024 bytes; send less", "/a"),
        (HEAD + CHUNKED + b"500\r\n" + b"x" * 0x500, 413, "TOO_LARGE", "more than 1024 bytes; send less", "/a"),
        (b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n", 405, "METHOD_NOT_ALLOWED", "no", "/a"),
    ],
)
async def test_a_problem_has_a_code_a_sentence_and_the_path(
    request_: bytes, status: int, code: str, sentence: str, instance: str, autojump_clock: trio.testing.MockClock
) -> None:
    said = await conversation(request_)
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    told = json.loads(body)
    assert told["title"] == HTTPStatus(status).phrase
    assert (told["type"], told["status"], told["code"]) == ("about:blank", status, code)
    assert sentence in told["detail"]
    assert told["instance"] == instance


@pytest.mark.parametrize("step", [500, 200_000])
@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 431), (60_000, 431)])
async def test_a_head_has_so_many_bytes_at_most_however_it_comes(
    step: int, over: int, status: int, autojump_clock: trio.testing.MockClock
) -> None:
    begins, ends = b"GET /a HTTP/1.1\r\nhost: x\r\na: ", b"\r\n\r\n"
    data = begins + b"x" * (HEAD_BYTES_MAX + over - len(begins) - len(ends)) + ends
    said = await conversation(*(data[first : first + step] for first in range(0, len(data), step)), admit=let_in)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    if status == 431:
        told = json.loads(said.partition(b"\r\n\r\n")[2])
        assert (told["code"], told["instance"]) == ("HEAD_TOO_LARGE", "*")
        assert told["detail"].startswith("the request line and the headers have more than 32768 bytes together")


# ---------------------------------------------------------------------------- requests without a body


def let_in(_: Head) -> None:
    """Every request is read and answered."""


def by_head(head: Head) -> None:
    """Every request is answered by its head, as metrics are."""
    raise Declined(Answer(200, head.method.encode()))


ASKS = st.sampled_from(["GET", "HEAD", "DELETE", "OPTIONS"])


@pytest.mark.parametrize("how", [let_in, by_head])
@given(methods=st.lists(ASKS, min_size=1, max_size=4), step=st.integers(1, 60))
def test_requests_without_a_body_need_no_length_and_leave_the_connection_open(
    how: Admit, methods: list[str], step: int
) -> None:
    data = "".join(f"{method} /a HTTP/1.1\r\nhost: x\r\n\r\n" for method in methods).encode()
    data += HEAD + b"content-length: 3\r\n\r\nabc"

    async def main() -> None:
        said = await conversation(*(data[first : first + step] for first in range(0, len(data), step)), admit=how)
        assert said.count(b"HTTP/1.1 200 ") == len(methods) + 1
        assert said.partition(b"HTTP/1.1 200 ")[2].rpartition(b"HTTP/1.1 200 ")[0].count(b"connection: close") == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("how", [let_in, by_head])
@pytest.mark.parametrize(
    ("after", "status"), [(b"\x16\x03\r\n\r\n", 400), (b"x" * 100_000, 431), (HEAD + b"\r\n", 411), (b"", None)]
)
async def test_what_comes_after_a_request_without_a_body_is_a_request_or_refused(
    how: Admit, after: bytes, status: int | None, autojump_clock: trio.testing.MockClock
) -> None:
    if how is by_head and status == 411:
        status = 200
    said = await conversation(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n" + after, admit=how)
    first, _, second = said.removeprefix(b"HTTP/1.1 ").partition(b"HTTP/1.1 ")
    assert first.startswith(b"200 ")
    assert b"connection: close" not in first
    assert second.startswith(b"" if status is None else b"%d " % status)
    assert (b"connection: close" in second) == (status is not None)


@pytest.mark.parametrize(
    "framing", [b"content-length: 3\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
async def test_a_body_that_a_get_announces_is_read(framing: bytes, autojump_clock: trio.testing.MockClock) -> None:
    said = await conversation(b"GET /a HTTP/1.1\r\nhost: x\r\n" + framing, admit=let_in)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.endswith(b"cba")
