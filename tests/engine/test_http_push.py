"""The source `http` with `mode: push`: taken once, answered rightly, through restarts and a full disk."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import zstandard

from conveyord.core.errors import ConfigError, ConveyordError, Refused, Retryable
from conveyord.core.flow.positions import Partition, Position, Positions
from conveyord.operators.source_http import HttpSource, HttpSourceConfig
from conveyord.storage.push_journal import PushJournal
from tests.engine.http_push_rig import URL, PushOut, pushing, source_of
from tests.engine.http_rig import made_certificate
from tests.engine.source_rig import Letters

COMMITTED = {"respond": "committed"}


def lines(*numbers: int) -> bytes:
    return b"".join(b'{"n": %d}\n' % number for number in numbers)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    return answer.status_code, body["code"]


# -------------------------------------------------------------------- what is taken


async def test_objects_lists_and_lines_become_rows_in_order(data_dir: Path) -> None:
    async with pushing(data_dir) as source:
        answers = [
            await source.post({"n": 0}, key="a"),
            await source.post([{"n": 1}, {"n": 2}], key="b"),
            await source.post(b'\xef\xbb\xbf{"n": 3}\r\n\n{"n": 4}', key="c"),
            await source.post(gzip.compress(lines(5, 6)), key="d", content_encoding="gzip"),
            await source.post(zstandard.compress(lines(7)), key="e", content_encoding="zstd"),
            await source.post([], key="f"),
        ]
    assert [answer.status_code for answer in answers] == [202] * 6
    assert [answer.json()["records"] for answer in answers] == [1, 2, 2, 2, 1, 0]
    assert [answer.json()["offset"] for answer in answers[:5]] == [0, 1, 3, 5, 7]
    assert source.out.numbers == [*range(8)]
    assert source.out.within == [None] * len(source.out.batches)


async def test_a_known_key_with_no_records_is_another_request(data_dir: Path) -> None:
    async with pushing(data_dir) as source:
        assert (await source.post({"n": 0}, key="a")).status_code == 202
        assert code_of(await source.post(b"", key="a")) == (422, "KEY_REUSED")
        assert code_of(await source.post([], key="a")) == (422, "KEY_REUSED")
        assert [(await source.post(b"", key="b")).status_code for _ in range(2)] == [202, 202]
        assert (await source.post({"n": 1}, key="b")).status_code == 202, "an empty request is not remembered"
    assert source.out.numbers == [0, 1]


async def test_values_keep_every_digit_and_their_line_ends_within_strings(data_dir: Path) -> None:
    body = b'[{"big":\n 123456789012345678901234567890, "t": "a\\nb"}, \r\n {"big": 1}]'
    async with pushing(data_dir) as source:
        headers = {"content-type": "application/json; charset=utf-8", "idempotency-key": "k"}
        assert (await source.client.post(source.url, content=body, headers=headers)).status_code == 202
    assert [row["t"] for row in source.out.rows] == ["a\nb", None]
    assert "123456789012345678901234567890" in str(source.out.rows)


async def test_the_records_of_a_request_are_in_one_batch(data_dir: Path) -> None:
    out = PushOut()
    out.gate = trio.Event()
    async with pushing(data_dir, out=out) as source:
        for number in range(5):
            await source.post(lines(*range(100)), key=f"k{number}")
        out.gate.set()
    assert out.numbers == [*range(100)] * 5
    assert all(span.end % 100 == 0 for _, span, _ in out.batches)
    assert len(out.batches) <= 2, "what waits goes on together"


async def test_provenance_and_dead_letters_name_the_record(data_dir: Path) -> None:
    async with pushing(data_dir, more={"provenance": True, "dead_letters": Letters()}) as source:
        await source.post(lines(7, 8))
        name = f"push-{source.journal.identity}"
    found = [(row["_source"], row["_partition"], row["_offset"]) for row in source.out.rows]
    assert found == [("in", name, 0), ("in", name, 1)]


def test_a_dead_letter_of_a_push_is_read_by_itself(data_dir: Path) -> None:
    source = source_of(data_dir)
    assert source.decode(b'{"n": 1}', None).to_pylist() == [{"n": 1}]


# -------------------------------------------------------------------- keys


async def test_a_request_that_is_sent_again_gets_the_first_answer_and_no_second_row(data_dir: Path) -> None:
    async with pushing(data_dir) as source:
        first = await source.post([{"n": 1}, {"n": 2}])
        again = await source.post(gzip.compress(lines(1, 2).replace(b" ", b" ")), content_encoding="gzip")
        other = await source.post([{"n": 1}, {"n": 3}])
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert code_of(other) == (422, "KEY_REUSED")
    assert source.out.numbers == [1, 2]


async def test_a_key_is_known_in_the_next_run(data_dir: Path) -> None:
    async with pushing(data_dir) as source:
        first = await source.post({"n": 1})
    async with pushing(data_dir, source.out.positions) as source:
        again = await source.post({"n": 1})
        assert (again.status_code, again.content) == (202, first.content)
        assert code_of(await source.post({"n": 2})) == (422, "KEY_REUSED")
        assert (await source.post({"n": 2}, key="other")).json()["offset"] == 1
    assert source.out.numbers == [2]


async def test_one_key_sent_many_times_at_once_is_one_row(data_dir: Path) -> None:
    answers: list[httpx.Response] = []

    async def send() -> None:
        answers.append(await source.post({"n": 1}))

    async with pushing(data_dir) as source, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(send)
    assert {answer.content for answer in answers} == {b'{"status": "accepted", "records": 1, "offset": 0}'}
    assert source.out.numbers == [1]


async def test_without_keys_every_request_is_another_if_that_is_allowed(data_dir: Path) -> None:
    async with pushing(data_dir) as source:
        assert code_of(await source.post({"n": 1}, key=None)) == (400, "KEY_MISSING")
        for key in ("", "x" * 256, "a\u00e9"):
            headers = [(b"content-type", b"application/json"), (b"idempotency-key", key.encode("latin-1"))]
            answer = await source.client.post(source.url, content=b"{}", headers=headers)
            assert code_of(answer) == (400, "KEY_MALFORMED")
    async with pushing(data_dir, push={"require_key": False, "key_header": "X-Delivery"}) as source:
        for _ in range(2):
            assert (await source.post({"n": 1}, key=None)).status_code == 202
        for _ in range(2):
            assert (await source.post({"n": 2}, key=None, x_delivery="d")).status_code == 202
    assert source.out.numbers == [1, 1, 2]


# -------------------------------------------------------------------- when it is answered


async def test_committed_means_that_every_sink_has_it(data_dir: Path) -> None:
    out, answers = PushOut(settles=False), []

    async def send(number: int) -> None:
        answers.append(await source.post({"n": number}, key=str(number)))

    async with pushing(data_dir, out=out, push=COMMITTED) as source:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(send, number)
            await source.until(lambda: len(out.rows) == 10)
            assert answers == []
            out.settle()
        assert [answer.status_code for answer in answers] == [200] * 10
        again = await source.post({"n": 3}, key="3")
        assert (again.status_code, again.json()["status"]) == (200, "committed")
    assert set(out.within) == {1.0}
    assert sorted(out.numbers) == [*range(10)]


async def test_a_commit_that_takes_too_long_is_waited_for_by_the_same_request(data_dir: Path) -> None:
    out = PushOut(settles=False)
    async with pushing(
        data_dir, out=out, push={**COMMITTED, "commit_within": "1ms", "commit_timeout": "50ms"}
    ) as source:
        answer = await source.post({"n": 1})
        assert code_of(answer) == (503, "NOT_COMMITTED_YET")
        assert answer.headers["retry-after"] == "1"
        out.settle()
        assert (await source.post({"n": 1})).status_code == 200
    assert out.numbers == [1]


async def test_a_full_journal_says_come_again_until_sinks_have_something(data_dir: Path) -> None:
    out = PushOut(settles=False)
    async with pushing(data_dir, out=out, max_body="2KiB", push={"journal": "3KiB"}) as source:
        big = {"n": 1, "text": "x" * 1500}
        assert (await source.post(big, key="a")).status_code == 202
        assert (await source.post(big, key="b")).status_code == 202
        answer = await source.post(big, key="c")
        assert (*code_of(answer), answer.headers["retry-after"]) == (503, "JOURNAL_FULL", "1")
        assert (await source.post(big, key="a")).status_code == 202, "known all the same"
        await source.until(lambda: len(out.rows) == 2)
        out.settle()
        await source.until(lambda: source.journal.bytes == 0)
        assert (await source.post(big, key="c")).status_code == 202
    assert len(out.rows) == 3


def limit_pages(journal: PushJournal, pages: int | None) -> None:
    """How large a journal may get; None: no larger than it is."""
    if pages is None:
        (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")


async def test_a_full_disk_says_come_again_and_the_source_lives_on(data_dir: Path) -> None:
    async with pushing(data_dir) as source:
        assert (await source.post({"n": 1}, key="a")).status_code == 202
        await source.until(lambda: source.journal.floor == 1)
        limit_pages(source.journal, None)
        big = lines(2) + b'{"text": "%s"}' % (b"x" * 100_000)
        answer = await source.post(big, key="b")
        assert (*code_of(answer), answer.headers["retry-after"]) == (503, "STORAGE_FULL", "1")
        assert str(data_dir) not in answer.text
        limit_pages(source.journal, 100_000)
        assert (await source.post(big, key="b")).status_code == 202
    assert source.out.numbers == [1, 2, None]


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "record"),
    [
        (b'{"n": 1}\n{"n": ', {}, 400, "MALFORMED_RECORD", 1),
        (b'{"n": 1}\n[1]', {}, 400, "NOT_AN_OBJECT", 1),
        (b'{"n": 1, "n": 2}', {}, 400, "DUPLICATE_KEY", 0),
        (b'{"n": NaN}', {}, 400, "NOT_A_NUMBER", 0),
        (b'{"n": "\xff"}', {}, 400, "INVALID_UTF8", 0),
        (b"[" * 200, {}, 400, "NOT_AN_OBJECT|TOO_DEEP|MALFORMED_RECORD", 0),
        (b'{"a":' * 200 + b"1" + b"}" * 200, {}, 400, "TOO_DEEP", 0),
        (b'[{"n": 1}, {"n": 2}, 3]', {"content-type": "application/json"}, 400, "NOT_AN_OBJECT", 2),
        (b'[{"n": 1}, ', {"content-type": "application/json"}, 400, "MALFORMED_BODY", None),
        (b"[" * 100_000, {"content-type": "application/json"}, 400, "MALFORMED_BODY", None),
        (b"", {"content-type": "application/json"}, 400, "MALFORMED_BODY", None),
        (b'{"n": 1} {"n": 2}', {"content-type": "application/json"}, 400, "MALFORMED_BODY", None),
        (gzip.compress(lines(1), mtime=0)[:-4], {"content-encoding": "gzip"}, 400, "MALFORMED_BODY", None),
        (zstandard.compress(lines(1) * 99)[:-1], {"content-encoding": "zstd"}, 400, "MALFORMED_BODY", None),
        (b"no gzip", {"content-encoding": "gzip"}, 400, "MALFORMED_BODY", None),
        (gzip.compress(bytes(2**26), mtime=0), {"content-encoding": "gzip"}, 413, "TOO_LARGE", None),
        (zstandard.compress(bytes(2**30)), {"content-encoding": "zstd"}, 413, "TOO_LARGE", None),
        (b"{}\n" * 250_001, {}, 413, "TOO_LARGE", None),
        (b"x" * (2**20 + 1), {}, 413, "TOO_LARGE", None),
        (lines(1), {"content-type": "text/csv"}, 415, "UNSUPPORTED_MEDIA_TYPE", None),
        (lines(1), {"content-encoding": "br"}, 415, "UNSUPPORTED_ENCODING", None),
        (lines(1), {"host": "rebound.example:1"}, 421, "MISDIRECTED", None),
        (lines(1), {"x-long": "x" * 200_000}, 431, "HEAD_TOO_LARGE", None),
    ],
)
async def test_a_request_is_refused_whole_with_the_place_of_the_fault(
    data_dir: Path, body: bytes, headers: dict[str, str], status: int, code: str, record: int | None
) -> None:
    async with pushing(data_dir, max_body="1MiB") as source:
        named = {"content-type": "application/x-ndjson", "idempotency-key": "k", **headers}
        answer = await source.client.post(source.url, content=body, headers=named)
        assert answer.status_code == status
        assert code_of(answer)[1] in code.split("|")
        assert answer.json().get("record") == record
        assert source.journal.next == 0
        assert (await source.post({"n": 1})).status_code == 202, "it serves on"
    assert source.out.numbers == [1]


async def test_methods_and_paths_that_are_none_are_told_so(data_dir: Path) -> None:
    async with pushing(data_dir) as source:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            answer = await source.client.request(method, source.url)
            assert (*code_of(answer), answer.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "POST")
        assert (await source.client.head(source.url)).status_code == 405
        assert code_of(await source.client.post(f"{source.url}/more", content=b"{}")) == (404, "NOT_FOUND")
        assert (await source.client.post(f"{source.url}?a=1", content=b"{}")).status_code == 415
        whole = HEAD.replace(b"/events", source.url.encode()) + b"connection: close\r\ncontent-length: 2\r\n\r\n{}"
        assert b"HTTP/1.1 202 " in await source.raw(whole)


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic s3cr3t", "Bearer", "Bearer s3cr3t2", "bearer \u00e9"])
async def test_only_the_token_lets_in(data_dir: Path, given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSH_TOKEN", "s3cr3t")
    async with pushing(data_dir, push={"token": "env:PUSH_TOKEN"}) as source:
        headers = {"content-type": "application/json", "idempotency-key": "k", "host": "any.example"}
        named: list[tuple[bytes, bytes]] = [(name.encode(), text.encode()) for name, text in headers.items()]
        wrong = named if given is None else [*named, (b"authorization", given.encode("latin-1"))]
        answer = await source.client.post(source.url, content=b"{}", headers=wrong)
        assert code_of(answer) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await source.post({"n": 1}, authorization="Bearer s3cr3t")).status_code == 202


async def test_the_protocol_is_kept(data_dir: Path) -> None:
    head = HEAD
    async with pushing(data_dir, max_body="1KiB") as source:
        assert b"HTTP/1.1 411 " in await source.raw(head + b"\r\n")
        assert b"HTTP/1.1 400 " in await source.raw(b"nonsense\r\n\r\n")
        assert b"HTTP/1.1 400 " in await source.raw(b"POST /events HTTP/1.1\r\n\r\n"), "no host"
        assert b"HTTP/1.1 501 " in await source.raw(head + b"transfer-encoding: gzip\r\n\r\n")
        chunked = head + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        assert b"HTTP/1.1 413 " in await source.raw(chunked + b"800\r\n" + b"x" * 2048 + b"\r\n0\r\n\r\n")
        assert b"HTTP/1.1 202 " in await source.raw(chunked + b'8\r\n{"n": 1}\r\n0\r\n\r\n')
        waits = head + b"connection: close\r\nexpect: 100-continue\r\ncontent-length: "
        said = await source.raw(waits + b'8\r\n\r\n{"n": 1}')
        assert said.startswith(b"HTTP/1.1 100 ")
        assert b"HTTP/1.1 202 " in said
        refused = await source.raw(waits + b"9999\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 413 "), "without asking for the body"
        twice = head + b'content-length: 8\r\n\r\n{"n": 1}'
        said = await source.raw(twice + twice.replace(b"\r\nhost", b"\r\nconnection: close\r\nhost"))
        assert said.count(b"HTTP/1.1 202 ") == 2, "one after the other on one connection"
        assert b"HTTP/1.1 400 " in await source.raw(head + b"content-length: 8\r\ncontent-length: 9\r\n\r\n")
    assert source.out.numbers == [1]


HEAD = b"POST /events HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\ncontent-type: application/json\r\n"
CUT = HEAD + b"content-length: 10\r\n\r\n{"


@pytest.mark.parametrize(("begun", "option"), [(HEAD[:40], "connect_timeout"), (CUT, "read_timeout"), (CUT, "timeout")])
async def test_who_dawdles_is_cut_off(data_dir: Path, begun: bytes, option: str) -> None:
    async with pushing(data_dir, **{option: "50ms"}) as source:
        assert b"HTTP/1.1 408 " in await source.raw(begun)
        assert source.journal.next == 0


async def test_who_is_idle_is_let_go_without_a_word(data_dir: Path) -> None:
    async with pushing(data_dir, read_timeout="50ms") as source:
        assert await source.raw(b"") == b""


async def test_requests_that_hold_too_much_together_are_told_to_come_again(data_dir: Path) -> None:
    head = HEAD
    async with pushing(data_dir, max_body="48KiB", push={"memory": "96KiB"}) as source:
        streams = [await trio.open_tcp_stream("127.0.0.1", source.port) for _ in range(2)]
        for stream in streams:
            await stream.send_all(head + b"content-length: 48000\r\n\r\n" + b" " * 47_990)
        answer = await source.post(b" " * 40_000)
        with trio.fail_after(20):
            while answer.status_code != 429:  # until both are read
                answer = await source.post(b" " * 40_000)
        assert code_of(answer) == (429, "TOO_MANY_REQUESTS")
        assert answer.headers["retry-after"] == "1"
        for stream in streams:
            await stream.aclose()
        with trio.fail_after(20):
            while (await source.post({"n": 1})).status_code != 202:
                await trio.sleep(0.01)
    assert source.out.numbers == [1]


async def test_more_connections_than_are_served_wait_their_turn(data_dir: Path) -> None:
    answers: list[int] = []

    async def send(number: int) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            headers = {"content-type": "application/json", "idempotency-key": str(number)}
            answers.append((await client.post(source.url, json={"n": number}, headers=headers)).status_code)

    async with pushing(data_dir, push={"connections": 3}) as source, trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(send, number)
    assert answers == [202] * 30
    assert sorted(source.out.numbers) == [*range(30)]


async def test_it_is_served_encrypted(data_dir: Path, tmp_path: Path) -> None:
    import ssl

    certificate, key = made_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    options: dict[str, Any] = {"push": {"certificate": str(certificate), "certificate_key": str(key)}}
    async with pushing(data_dir, url="https://127.0.0.1:0/", verify=trust, **options) as source:
        assert source.url.startswith("https://")
        assert (await source.post({"n": 1})).status_code == 202
        plain = await source.raw(b"POST / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"HTTP" not in plain
        assert (await source.post({"n": 2}, key="l")).status_code == 202
    assert source.out.numbers == [1, 2]


# -------------------------------------------------------------------- the end of a run, and the next


async def test_a_run_that_is_to_end_answers_what_it_has_begun_to_read(data_dir: Path) -> None:
    out, answers = PushOut(settles=False), []

    async def send() -> None:
        answers.append(await source.post({"n": 1}))

    async with pushing(data_dir, out=out, push=COMMITTED) as source:
        idle = await trio.open_tcp_stream("127.0.0.1", source.port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await source.until(lambda: len(out.rows) == 1)
            source.drain.set()
            with trio.fail_after(20):
                assert await idle.receive_some(1) == b""
            await idle.aclose()
            with pytest.raises(OSError):
                await trio.open_tcp_stream("127.0.0.1", source.port)
            assert not source.over.is_set()
            out.settle()
        await source.over.wait()
    assert [(answer.status_code, answer.headers["connection"]) for answer in answers] == [(200, "close")]


async def test_the_next_run_goes_on_where_the_sinks_are(data_dir: Path) -> None:
    out = PushOut(settles=False)
    async with pushing(data_dir, out=out) as source:
        for number in range(3):
            await source.post(lines(2 * number, 2 * number + 1), key=str(number))
            await source.until(lambda here=number: len(out.rows) == 2 * here + 2)
        partition = Partition("in", f"push-{source.journal.identity}")
    (slow, quick) = (Positions({partition: Position(at)}, out.positions.states) for at in (2, 4))
    out = PushOut(held=slow)
    async with pushing(data_dir, slow, quick, out=out) as source:
        await source.until(lambda: source.journal.floor == 6)
    assert out.numbers == [2, 3, 4, 5]
    assert [(span.first, span.end) for _, span, _ in out.batches] == [(2, 4), (4, 6)], "cut where each sink is"
    async with pushing(data_dir, out.positions) as source:
        pass
    assert source.out.batches == []
    async with pushing(data_dir) as source:  # a sink that keeps no positions, or a new one
        await source.post({"n": 9}, key="9")
    assert [(span.first, span.end) for _, span, _ in source.out.batches] == [(6, 7)]


async def test_a_journal_that_does_not_go_with_the_sinks_is_refused(data_dir: Path, tmp_path: Path) -> None:
    async with pushing(data_dir) as source:
        for number in range(4):
            await source.post({"n": number}, key=str(number))
        partition = Partition("in", f"push-{source.journal.identity}")

    async def refused(message: str, where: Path, at: int) -> None:
        other = source_of(where)
        try:
            with pytest.raises(Refused, match=message):
                await other.run(PushOut(), fences=(Positions({partition: Position(at)}),), drain=trio.Event())
        finally:
            with trio.move_on_after(5, shield=True):
                await other.close()

    await refused("up to 2, but those below 4 were deleted", data_dir, 2)
    await refused("up to 5, but the journal ends at 4", data_dir, 5)
    elsewhere = tmp_path / "elsewhere"
    await refused("records of another journal than the one below", elsewhere, 4)
    held = Positions({partition: Position(4)})
    async with pushing(elsewhere, held, push={"on_lost_journal": "restart"}) as source:
        assert (await source.post({"n": 1}, key="1")).json()["offset"] == 0
    async with pushing(elsewhere, source.out.positions) as source:
        pass


async def test_a_renamed_pipeline_goes_on_with_its_journal(data_dir: Path) -> None:
    out = PushOut(settles=False)
    async with pushing(data_dir, out=out) as source:
        await source.post({"n": 1}, key="1")
        partition = Partition("in", f"push-{source.journal.identity}")
        await source.until(lambda: out.numbers == [1])
    (data_dir / "journals" / "default%2Fp").rename(data_dir / "journals" / "default%2Fold")
    held = Positions({partition: Position(0)})
    other = source_of(data_dir)
    with pytest.raises(Refused, match="or the pipeline's former name with --adopt"):
        await other.run(PushOut(), fences=(held,), drain=trio.Event())
    await other.close()
    async with pushing(data_dir, held, more={"adopt_from": "default/old"}) as source:
        await source.until(lambda: source.out.numbers == [1])
        assert (await source.post({"n": 1}, key="1")).json()["offset"] == 0
        assert (await source.post({"n": 2}, key="2")).json()["offset"] == 1
    assert source.out.numbers == [1, 2]


async def test_an_address_or_a_secret_that_cannot_be_had_is_told(data_dir: Path, tmp_path: Path) -> None:
    async def failure(**options: Any) -> ConveyordError:
        source = source_of(tmp_path / "another", **options)
        with pytest.raises(ConveyordError) as caught:
            await source.check()
        await source.close()
        return caught.value

    async with pushing(data_dir) as source:
        in_use = await failure(url=source.url)
        assert isinstance(in_use, Retryable)
        assert "stop what listens there" in str(in_use)
    assert "is not set" in str(await failure(push={"token": "env:NO_SUCH_TOKEN"}))
    assert "or holds a space" in str(await failure(push={"token": "two words"}))
    lost = await failure(url="https://127.0.0.1:0/", push={"certificate": "/no/such.pem"})
    assert isinstance(lost, ConfigError)
    assert "No such file" in str(lost)
    source_ = source_of(data_dir)
    await source_.check()
    assert not (data_dir / "journals" / "default%2Fp" / "other.db").exists()


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"url": "http://0.0.0.0:1/"}, "push", "set token, or allow_anyone"),
        ({"url": "http://example.org/"}, "push", "anyone who reaches example.org"),
        ({"url": "https://127.0.0.1/"}, "push", "an address with https needs certificate"),
        ({"push": {"certificate": "c.pem"}}, ("push", "certificate"), "write https"),
        ({"push": {"certificate_key": "c.pem"}}, ("push", "certificate_key"), "needs certificate"),
        ({"url": "http://127.0.0.1/?a=1"}, "url", "ends in a query"),
        ({"url": "ftp://127.0.0.1/"}, "url", "must begin with http"),
        ({"every": "5s"}, "every", "has no meaning with mode: push"),
        ({"headers": {"a": "b"}}, "headers", "has no meaning with mode: push"),
        ({"push": {"key_header": "content-length"}}, ("push", "key_header"), "cannot hold a key"),
        ({"push": {"respond": "committed", "require_key": False}}, ("push", "require_key"), "needs keys"),
        ({"push": {"commit_timeout": "1s"}}, ("push", "commit_timeout"), "longer than commit_within"),
        ({"push": {"memory": "64MiB"}}, ("push", "memory"), "must hold two requests of max_body"),
        ({"mode": "poll", "push": {"respond": "committed"}}, "push", "without mode: push"),
    ],
)
def test_options_that_contradict_each_other_are_told_of(options: dict[str, Any], key: Any, message: str) -> None:
    config = HttpSourceConfig.model_validate({"url": URL, "mode": "push", **options})
    found = HttpSource.mistakes(config)
    assert set(found) == {key}
    assert message in found[key]


def test_listening_for_anyone_is_possible_when_said(data_dir: Path) -> None:
    for push in ({"allow_anyone": True}, {"token": "t"}):
        source_of(data_dir, url="http://0.0.0.0:1/", push=push)


async def test_requests_at_random_are_all_there_once(data_dir: Path) -> None:
    """Many senders, some keys sent several times at once and in different forms; runs that end in between."""
    sent: dict[str, list[int]] = {f"k{n}": [*range(n * 10, n * 10 + n % 4)] for n in range(40)}
    positions, seen = Positions(), []

    async def send(source: Any, key: str, numbers: list[int]) -> None:
        forms = [(lines(*numbers), {}), (gzip.compress(lines(*numbers)), {"content_encoding": "gzip"})]
        for body, headers in forms:
            answer = await source.post(body, key=key, **headers)
            assert (answer.status_code, answer.json()["records"]) == (202, len(numbers))

    for turn in range(3):
        async with pushing(data_dir, positions) as source, trio.open_nursery() as nursery:
            for number, (key, numbers) in enumerate(sent.items()):
                if number % 3 <= turn:
                    nursery.start_soon(partial(send, source, key, numbers))
        positions = source.out.positions
        seen += source.out.numbers
    assert sorted(seen) == sorted(number for numbers in sent.values() for number in numbers)
    assert json.loads(json.dumps(seen)) == seen
