"""The source `http` when something is wrong: the server, the records, the settings, the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError, ConveyordError, RecordError, Retryable
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.contracts import Rejected
from conveyord.operators.source_http import HttpSource, HttpSourceConfig
from tests.engine.graph_rig import DLQ, World, pipeline, run, sink, stage
from tests.engine.http_rig import RESET, Answer, Asked, said, serving
from tests.engine.http_source_rig import (
    SINCE,
    TOKEN,
    Out,
    listing,
    read,
    rows,
    since,
    source_at,
    sum_of,
)

# -------------------------------------------------------------------- faults and bad records


@pytest.mark.parametrize("fault", [said({}, 503), said({}, 429), RESET, Answer(body=b"[1", length=9)])
async def test_what_may_pass_is_told_as_such_after_all_that_came_before(data_dir: Path, fault: Any) -> None:
    pages = listing(7, 3)
    with serving(lambda asked: fault if asked.query else pages(asked)) as server:
        out = Out()
        with pytest.raises(Retryable):
            await read(source_at(server, data_dir, **TOKEN), out=out)
        assert out.numbers == [0, 1, 2]
        server.script = pages
        assert (await read(source_at(server, data_dir, **TOKEN), out.positions)).numbers == [3, 4, 5, 6]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
async def test_what_somebody_must_mend_stops_the_run(data_dir: Path, status: int) -> None:
    with (
        serving(lambda _: said("no", status)) as server,
        pytest.raises(ConfigError, match=f"answers {status}") as error,
    ):
        await read(source_at(server, data_dir, url=server.url("/list?key=k"), params={"token": "hunter2"}))
    assert server.asked[0].query == {"key": "k", "token": "hunter2"}
    assert "=k" not in str(error.value)
    assert "hunter2" not in str(error.value)


BAD = b'[{"n": 0}, 7, {"n": 2}, {"n": 1, "n": 2}, {"n": 4}]'


async def test_a_bad_record_stops_behind_those_before_it_and_the_next_run_begins_with_it(data_dir: Path) -> None:
    with serving(lambda _: Answer(body=BAD)) as server:
        out = Out()
        with pytest.raises(RecordError, match=r"/list \(record 1\): ") as error:
            await read(source_at(server, data_dir), out=out)
        assert (out.numbers, error.value.code) == ([0], "NOT_AN_OBJECT")
        again = Out(out.positions)
        with pytest.raises(RecordError, match=r"\(record 1\)"):
            await read(source_at(server, data_dir), out.positions, out=again)
        assert again.batches == []
        skipping = await read(source_at(server, data_dir, more={"skip_bad": True}), out.positions)
    assert skipping.numbers == [2, 4]
    assert skipping.batches[0][1] == Tally(read=4, skipped=2)


edits = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 6), st.binary(max_size=4)), min_size=1, max_size=4)


@given(edits)
def test_a_damaged_answer_is_a_sentence_or_accounted_for_record_by_record(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, bytes]]
) -> None:
    items = [{"n": n, "at": n, "t": "ä\\u00e9", "o": {"x": [1, None, 2.5]}} for n in range(4)]
    body = json.dumps({"items": items, "next": None, "more": {"a": [[]]}}).encode()
    for at, length, put in edits:
        body = body[:at] + put + body[at + length :]
    with serving(lambda _: Answer(body=body)) as server:
        options = {"records": "items", "next_link": "next", "cursor": {"param": "since", "from_record": "at"}}
        source = source_at(server, tmp_path_factory.mktemp("fuzz"), more={"skip_bad": True}, timeout="10s", **options)

        async def main() -> None:
            out = Out(drain=trio.Event(), batches_max=3)
            try:
                await read(source, out=out)
            except ConveyordError as error:
                sentences.append(str(error))
            assert sum(tally.read for _, tally in out.batches) == sum_of(out.positions)

        sentences: list[str] = []
        trio.run(main)
        assert all(len(sentence) < 1_000 for sentence in sentences)


class Letters:
    def __init__(self) -> None:
        self.rejected: list[Rejected] = []

    async def put(self, rejected: Sequence[Rejected]) -> None:
        self.rejected += rejected


async def test_bad_records_become_dead_letters_with_their_bytes_and_can_be_read_again(data_dir: Path) -> None:
    letters = Letters()
    with serving(lambda _: Answer(body=BAD)) as server:
        source = source_at(server, data_dir, more={"dead_letters": letters})
        out = await read(source)
    assert out.numbers == [0, 2, 4]
    assert out.batches[0][1] == Tally(read=5, dead=2)
    assert out.places == [(0, b'{"n": 0}'), (2, b'{"n": 2}'), (4, b'{"n": 4}')]
    records = [one.place.record for one in letters.rejected]
    assert [(record.offset, record.raw) for record in records] == [(1, b"7"), (3, b'{"n": 1, "n": 2}')]
    assert [one.error.code for one in letters.rejected] == ["NOT_AN_OBJECT", "DUPLICATE_KEY"]
    state = out.positions.states["in"]
    assert source.decode(b'{"n": 9}', state).to_pylist() == [{"n": 9}]
    assert source.decode(b'{"n":\n 9}', None).to_pylist() == [{"n": 9}]
    with pytest.raises(RecordError):
        source.decode(b"7", state)


async def test_provenance_names_each_record(data_dir: Path) -> None:
    with serving(listing(4, 3)) as server:
        out = await read(source_at(server, data_dir, more={"provenance": True}, **TOKEN))
    assert [row["_offset"] for row in out.rows] == [0, 1, 2, 3]
    assert {(row["_source"], row["_partition"]) for row in out.rows} == {("in", server.url("/list"))}


# -------------------------------------------------------------------- secrets, hosts, settings


async def test_secrets_go_to_the_home_alone_and_into_nothing_that_is_kept(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "hunter2")
    secrets: dict[str, Any] = {"params": {"key": "env:API_KEY"}, "headers": {"X-Token": "env:API_KEY"}}

    def script(asked: Asked) -> Answer:
        links = {"": "/list?at=1&key=hunter2", "1": f"http://localhost:{server.port}/list?at=2", "2": None}
        link = links[asked.query.get("at", "")]
        return said({"items": [{"n": len(server.asked)}], "next": link})

    with structlog.testing.capture_logs() as logs, serving(script) as server:
        source = source_at(server, data_dir, records="items", next_link="next", **secrets)
        out = await read(source)
    assert [asked.query.get("key") for asked in server.asked] == ["hunter2", "hunter2", None]
    assert [asked.headers.get("x-token") for asked in server.asked] == ["hunter2", "hunter2", None]
    assert out.numbers == [1, 2, 3]
    kept = f"{out.positions!r} {out.positions.states} {logs} {source.config!r} {source.config.model_dump()}"
    assert "hunter2" not in kept


@pytest.mark.parametrize("link", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://a:b@127.0.0.1/", "http://[::1/"])
async def test_a_link_that_must_not_be_followed_stops_the_run(data_dir: Path, link: str) -> None:
    answer = said({"items": rows(1), "next": link})
    with serving(lambda _: answer) as server, pytest.raises(ConfigError):
        await read(source_at(server, data_dir, records="items", next_link="next"))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"cursor": {"param": "p"}}, "cursor", "needs either path"),
        ({"cursor": {"path": "p"}}, "cursor", "needs param"),
        ({"cursor": {"param": "p", "path": "a", "from_record": "b"}}, "cursor", "needs either path"),
        ({"cursor": {"param": "p", "path": "a"}, "next_link": "b"}, "next_link", "both lead to the next page"),
        ({"url": "ftp://a/"}, "url", "must begin with http"),
    ],
)
def test_settings_that_do_not_fit_together_are_mistakes(options: dict[str, Any], key: str, message: str) -> None:
    config = HttpSourceConfig(**{"url": "http://a/", **options})
    assert message in HttpSource.mistakes(config)[key]


async def test_a_dry_run_asks_for_the_first_page(data_dir: Path) -> None:
    with serving(listing(2, 5)) as server:
        source = source_at(server, data_dir, **TOKEN)
        await source.check()
        assert len(server.asked) == 1
        server.script = lambda _: said("no", 401)
        with pytest.raises(ConfigError, match="check headers"):
            await source.check()
        await source.close()


# -------------------------------------------------------------------- in the engine


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_the_server_does_every_record_becomes_a_row_once(data_dir: Path, seed: int) -> None:
    """Faults at random, a sink whose disk fills, and a list that grows: runs until one is whole."""
    random, world = Random(seed), World()

    def script(asked: Asked) -> Answer | str:
        if random.random() < 0.25:
            return random.choice([RESET, said({}, 503), said("no", 403), Answer(body=b"[{", length=99)])
        return Answer(200, listing(40, 4)(asked).body.replace(b'{"n": 2}', b"7"))

    with serving(script) as server:
        http = stage("in", "source", "http", url=server.url("/list"), once=True, **TOKEN)
        pipe = pipeline([http, sink("a"), sink("b")], [Edge("in", "a"), Edge("in", "b")], dlq=DLQ)
        for _ in range(100):
            if random.random() < 0.5:
                world.sink_faults["default/p", random.choice("ab")] = random.randint(0, 20)
            outcome = await run(world, pipe, data_dir)
            if not outcome.failed():
                break
    assert outcome.failed() == []
    for name in "ab":
        assert [row["n"] for row in world.kept("default/p", name).rows] == [n for n in range(40) if n != 2]
    (letter,) = outcome.letters_of()
    assert (letter.letter.key.offset, letter.letter.raw) == (2, b"7")
    assert json.loads(world.kept("default/p", "a").positions.states["in"])["start"] == 36


async def test_a_busy_server_is_left_alone_as_long_as_it_asks(
    data_dir: Path, racing_clock: trio.testing.MockClock
) -> None:
    with serving(lambda _: said({}, 429, Retry_After="30")) as server:
        started = trio.current_time()
        with pytest.raises(Retryable, match="answers 429"):
            await read(source_at(server, data_dir, timeout="1h", read_timeout="1h"))
        assert trio.current_time() - started >= 30


@pytest.fixture
def racing_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(rate=200)


@pytest.mark.parametrize(("per_page", "is_told"), [(2, True), (4, False)])
async def test_more_records_of_one_value_than_a_page_holds_are_told_of(
    data_dir: Path, per_page: int, is_told: bool
) -> None:
    """A server that answers from the value on gives the same full page again, and nobody sees what is behind it."""
    records = [{"n": n, "at": at} for n, at in enumerate([1, 2, 2, 2])]
    with serving(since(records, per_page, inclusive=True)) as server, structlog.testing.capture_logs() as logs:
        out = await read(source_at(server, data_dir, **SINCE))
    assert out.numbers == ([0, 1, 2] if is_told else [0, 1, 2, 3])
    told = [entry for entry in logs if "never reached" in entry["event"]]
    assert [(entry["field"], entry["value"], entry["records"]) for entry in told] == (
        [("at", "2", 2)] if is_told else []
    )
