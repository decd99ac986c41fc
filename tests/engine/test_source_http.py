"""The source `http`: every record once, through restarts, growing pages and faults."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError, Corrupt, Refused
from conveyord.core.flow.positions import Partition, Position, Positions
from conveyord.core.flow.tally import Tally
from conveyord.engine.http.paging import Bookmark, decoded
from conveyord.engine.json import JsonLinesDecoder
from tests.engine.http_rig import HANG, Answer, Asked, Script, one_by_one, said, serving
from tests.engine.http_source_rig import (
    SINCE,
    TOKEN,
    Out,
    linked,
    listing,
    read,
    read_now,
    rows,
    since,
    source_at,
)

# -------------------------------------------------------------------- pages


@pytest.mark.parametrize("records", [None, "items", "a.b.items"])
async def test_an_answer_is_a_list_or_holds_one(data_dir: Path, records: str | None) -> None:
    body: Any = rows(1, 2)
    for key in reversed(records.split(".") if records else []):
        body = {key: body, "other": [1]}
    with serving(lambda _: said(body)) as server:
        assert (await read(source_at(server, data_dir, records=records))).numbers == [1, 2]


async def test_an_answer_that_is_an_object_is_one_record(data_dir: Path) -> None:
    with serving(lambda _: Answer(body=b'\xef\xbb\xbf{\r\n  "n": 1,\n "t": "a\\nb"}\n')) as server:
        assert (await read(source_at(server, data_dir))).rows == [{"n": 1, "t": "a\nb"}]


@pytest.mark.parametrize("answer", [said([]), said(None), Answer(204), said({"items": []}), said({"items": None})])
async def test_an_answer_without_records_is_the_end(data_dir: Path, answer: Answer) -> None:
    records = "items" if b"items" in answer.body else None
    with serving(lambda _: answer) as server:
        out = await read(source_at(server, data_dir, records=records))
    assert (out.batches, dict(out.positions)) == ([], {})


async def test_values_keep_every_digit(data_dir: Path) -> None:
    text = b'[{"big": 123456789012345678901234567890, "f": 0.1, "t": "2026-01-01T00:00:00Z"}, {"big": 1, "f": 1e400}]'
    with serving(lambda _: Answer(body=text)) as server:
        source = source_at(server, data_dir)
        out = await read(source)
    lines = b'{"big": 123456789012345678901234567890, "f": 0.1, "t": "2026-01-01T00:00:00Z"}\n{"big": 1, "f": 1e400}\n'
    decoder = JsonLinesDecoder()
    expected = decoder.decode(lines, decoder.infer(lines, None), None).data
    assert out.batches[0][0].equals(expected), "typed as a file of the same lines"


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        (b"<html>", {}, "is not JSON of the expected shape|neither a list nor an object"),
        (b"[1, 2", {}, "is not JSON"),
        ('[{"n": 1}]'.encode("utf-16"), {}, "the answer is UTF-16 or UTF-32, or no text; JSON is read in UTF-8 alone"),
        ('[{"n": 1}]'.encode("utf-16-be"), {"records": "items"}, "the answer is UTF-16 or UTF-32"),
        (b"7", {}, "neither a list nor an object; check url and records"),
        (b'{"a": 1, "b": 2}', {"records": "items"}, r"nothing at records \('items'\); the outermost keys are: a, b"),
        (b"[]", {"records": "items"}, "nothing at records .*: none"),
        (b'{"items": 7}', {"records": "items"}, "what stands at records .* is neither"),
        (b'{"items": [{}], "next": {}}', {"records": "items", "next_link": "next"}, "is no text, so no address"),
        (b'{"items": [{}], "next": {}}', {"records": "items", "cursor": TOKEN["cursor"]}, "so it is no cursor"),
        (b'[{"n": 1}]', SINCE, "no record has 'at'; check cursor.from_record"),
    ],
)
async def test_an_answer_of_another_shape_is_a_setting_to_mend(
    data_dir: Path, body: bytes, options: dict[str, Any], message: str
) -> None:
    with serving(lambda _: Answer(body=body)) as server, pytest.raises(ConfigError, match=message):
        await read(source_at(server, data_dir, **options))


async def test_pages_are_read_by_their_cursor_to_the_last(data_dir: Path) -> None:
    with serving(listing(7, 3)) as server:
        out = await read(source_at(server, data_dir, **TOKEN))
        assert [asked.query for asked in server.asked] == [{}, {"page": "3"}, {"page": "6"}]
    assert out.numbers == [*range(7)]
    assert [tally for _, tally in out.batches] == [Tally(read=3), Tally(read=3), Tally(read=1)]
    assert out.positions == {Partition("in", server.url("/list")): Position(7)}


@pytest.mark.parametrize("inclusive", [False, True])
async def test_pages_are_read_by_the_last_records_value_whether_the_server_includes_it_or_not(
    data_dir: Path, inclusive: bool
) -> None:
    records = [{"n": n, "at": n // 2 if inclusive else n} for n in range(9)]
    with serving(since(records, 4, inclusive=inclusive)) as server:
        out = await read(source_at(server, data_dir, **SINCE))
        again = await read(source_at(server, data_dir, **SINCE), out.positions)
        records += [{"n": 9, "at": 4 if inclusive else 9}, {"n": 10, "at": 10}]
        more = await read(source_at(server, data_dir, **SINCE), out.positions)
    assert (out.numbers, again.numbers, more.numbers) == ([*range(9)], [], [9, 10])


@pytest.mark.parametrize("header", [False, True])
async def test_pages_are_read_by_links(data_dir: Path, header: bool) -> None:
    options = {"next_link": "Link"} if header else {"next_link": "paging.next", "records": "items"}
    with serving(linked(7, 3, header=header)) as server:
        out = await read(source_at(server, data_dir, **options))
        assert [asked.query for asked in server.asked[1:]] == [{"from": "3", "k": "1"}, {"from": "6", "k": "1"}]
    assert out.numbers == [*range(7)]


async def test_links_lead_through_one_poll_and_the_cursor_to_the_next(data_dir: Path) -> None:
    def script(asked: Asked) -> Answer:
        found = [row for row in records if row["at"] > int(asked.query.get("since", -1))]
        first = int(asked.query.get("skip", 0))
        more = first + 2 < len(found)
        link = {"link": f"<?since={asked.query.get('since', -1)}&skip={first + 2}>; rel=next"} if more else {}
        return said(found[first : first + 2], **link)

    records = [{"n": n, "at": n} for n in range(5)]
    with serving(script) as server:
        out = await read(source_at(server, data_dir, next_link="Link", **SINCE))
        records += [{"n": n, "at": n} for n in range(5, 8)]
        again = await read(source_at(server, data_dir, next_link="Link", **SINCE), out.positions)
    assert (out.numbers, again.numbers) == ([0, 1, 2, 3, 4], [5, 6, 7])


async def test_a_link_to_the_page_itself_is_the_end(data_dir: Path) -> None:
    with serving(lambda _: said(rows(1), link="</list?a=1>; rel=next")) as server:
        out = await read(source_at(server, data_dir, next_link="Link"))
        again = await read(source_at(server, data_dir, next_link="Link"), out.positions)
    assert (out.numbers, again.numbers) == ([1, 1], [])


async def test_a_server_that_does_not_heed_the_cursor_is_told_of_after_one_page(data_dir: Path) -> None:
    with serving(lambda _: said([{"n": n, "at": n} for n in range(4)])) as server:
        out = Out()
        with pytest.raises(ConfigError, match="again that it gave before, although since is 3; check cursor.param"):
            await read(source_at(server, data_dir, **SINCE), out=out)
    assert out.numbers == [0, 1, 2, 3]


async def test_empty_pages_without_end_are_given_up(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyord.operators.source_http.EMPTY_PAGES_MAX", 5)
    with serving(lambda asked: said({"items": [], "next": int(asked.query.get("p", 0)) + 1})) as server:
        await read(source_at(server, data_dir, records="items", cursor={"param": "p", "path": "next"}))
    assert len(server.asked) == 5


async def test_the_first_value_of_a_cursor_is_sent(data_dir: Path) -> None:
    with serving(listing(7, 3)) as server:
        cursor = {**TOKEN["cursor"], "initial": 5}
        out = await read(source_at(server, data_dir, records="data.items", cursor=cursor))
    assert out.numbers == [5, 6]


# -------------------------------------------------------------------- going on


@pytest.mark.parametrize("options", [TOKEN, {"next_link": "Link"}, SINCE], ids=["cursor", "link", "since"])
@settings(max_examples=6)
@given(seed=st.integers(0, 10_000))
def test_stopped_anywhere_and_grown_meanwhile_every_record_comes_once(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], seed: int
) -> None:
    random, data_dir = Random(seed), tmp_path_factory.mktemp("source")
    per_page, held, seen = random.randint(2, 4), Positions(), []

    def script(count: int) -> Script:
        if options is TOKEN:
            return listing(count, per_page)
        if options is SINCE:
            return since([{"n": n, "at": n} for n in range(count)], per_page, inclusive=seed % 2 == 0)
        return linked(count, per_page, header=True)

    count = random.randint(0, 6)
    with serving(script(count)) as server:
        for _ in range(4):
            server.script = script(count)
            stop = random.choice([None, 1, 2])
            out = trio.run(read_now, source_at(server, data_dir, **options), held, stop)
            held, seen = out.positions, seen + out.numbers
            count += random.randint(0, 5)
        server.script = script(count)
        seen += trio.run(read_now, source_at(server, data_dir, **options), held, None).numbers
    assert seen == [*range(count)]


async def test_a_page_that_lost_records_does_not_take_any_from_the_next(data_dir: Path) -> None:
    def script(asked: Asked) -> Answer:
        first = asked.query.get("page") is None
        return said({"data": {"items": rows(0, 2) if first else rows(3, 4)}, "next": "b" if first else None})

    with serving(lambda _: said({"data": {"items": rows(0, 1, 2)}, "next": None})) as server:
        out = await read(source_at(server, data_dir, **TOKEN))
        server.script = script
        again = await read(source_at(server, data_dir, **TOKEN), out.positions)
    assert (out.numbers, again.numbers) == ([0, 1, 2], [3, 4])


async def test_sinks_that_are_apart_get_batches_that_end_where_each_is(data_dir: Path) -> None:
    with serving(listing(6, 6)) as server:
        out = await read(source_at(server, data_dir, **TOKEN))
        partition, state = Partition("in", server.url("/list")), out.positions.states["in"]
        within = Bookmark().encoded(decoded(state, where="")[1])
        behind, ahead = (Positions({partition: Position(at)}, {"in": within}) for at in (2, 5))
        again = await read(source_at(server, data_dir, **TOKEN), behind, ahead)
        anew = await read(source_at(server, data_dir, **TOKEN), Positions(), ahead)
    assert [data.column("n").to_pylist() for data, _ in again.batches] == [[2, 3, 4], [5]]
    assert [data.column("n").to_pylist() for data, _ in anew.batches] == [[0, 1, 2, 3, 4], [5]]


async def test_an_address_without_cursor_is_read_again_only_if_it_changed(data_dir: Path) -> None:
    options: dict[str, Any] = {"every": "10ms", "once": False}
    answers = one_by_one(said(rows(1, 2)), said(rows(1, 2)), said(rows(2, 3)))
    with serving(answers) as server:
        out = await read(source_at(server, data_dir, **options), batches_max=2)
        assert out.numbers == [1, 2, 2, 3]
        again = await read(source_at(server, data_dir), out.positions)
        assert again.numbers == []
        server.script = lambda _: said(rows(9))
        assert (await read(source_at(server, data_dir), out.positions)).numbers == [9]


async def test_an_answer_that_is_not_modified_is_the_end_and_costs_no_body(data_dir: Path) -> None:
    def script(asked: Asked) -> Answer:
        if asked.headers.get("if-none-match") == '"v1"' and asked.headers.get("if-modified-since") == "yesterday":
            return Answer(304)
        return said(rows(1, 2), etag='"v1"', last_modified="yesterday")

    with serving(script) as server:
        out = await read(source_at(server, data_dir))
        again = await read(source_at(server, data_dir), out.positions)
    assert (out.numbers, again.numbers, len(server.asked)) == ([1, 2], [], 2)


async def test_the_wait_for_the_next_poll_ends_with_the_run(
    data_dir: Path, hasty_clock: trio.testing.MockClock
) -> None:
    with serving(listing(2, 5)) as server:
        started = trio.current_time()
        out = await read(source_at(server, data_dir, once=False, every="7d", **TOKEN), batches_max=1)
    assert out.numbers == [0, 1]
    assert trio.current_time() - started < 7 * 86400


async def test_a_request_that_is_not_answered_is_given_up_when_the_run_is_to_end(data_dir: Path) -> None:
    drain = trio.Event()
    with serving(lambda _: HANG) as server:
        source = source_at(server, data_dir)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: source.run(Out(), fences=(Positions(),), drain=drain))
            while not server.asked:
                await trio.sleep(0.001)
            drain.set()
        await source.close()


async def test_a_position_without_its_bookmark_is_refused(data_dir: Path) -> None:
    with serving(listing(2, 5)) as server:
        partition = Partition("in", server.url("/list"))
        with pytest.raises(Refused, match="up to record 5, but not where that is"):
            await read(source_at(server, data_dir, **TOKEN), Positions({partition: Position(5)}))
        for state in ("", "{}", '{"version":2,"schema":""}', '{"version":1,"schema":"","what":1}', "[]"):
            with pytest.raises(Corrupt, match="what the source stored with its position cannot be read"):
                await read(source_at(server, data_dir, **TOKEN), Positions({partition: Position(5)}, {"in": state}))


@given(st.builds(Bookmark, start=st.integers(0), cursor=st.text(), link=st.text(), edge=st.lists(st.text()).map(tuple)))
def test_a_bookmark_is_read_back_as_it_was(at: Bookmark) -> None:
    found, schema = decoded(at.encoded("s"), where="")
    assert (found.start, found.cursor or "", found.link or "", found.edge, schema) == (
        at.start,
        at.cursor or "",
        at.link or "",
        at.edge,
        "s",
    )


async def test_types_are_remembered_through_a_restart(data_dir: Path) -> None:
    pages = [[{"n": 1, "x": None}], [{"n": 2, "x": "a"}], [{"n": 3}]]

    def script(asked: Asked) -> Answer:
        at = int(asked.query.get("page", 0))
        return said({"data": {"items": pages[at]}, "next": at + 1 if at + 1 < len(pages) else None})

    with serving(script) as server:
        out = await read(source_at(server, data_dir, **TOKEN), batches_max=2)
        again = await read(source_at(server, data_dir, timeout="5s", **TOKEN), out.positions)
    assert again.batches[0][0].schema.field("x").type == pa.string()
    assert again.rows == [{"n": 3, "x": None}]
