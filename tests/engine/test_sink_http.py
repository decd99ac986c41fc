"""The sink `http`: every row is taken or set aside, what fails is sent again, and what is stored was taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError, Refused, Retryable
from conveyord.core.flow.positions import Partition, Position, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.contracts import OperatorContext, Rejected
from conveyord.engine.http.requests import json_rows, pieces_of
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.operators.sink_http import HttpSink, HttpSinkConfig
from tests.engine.graph_rig import DLQ, World, line, numbered, pipeline, run, sink, source, stage
from tests.engine.http_rig import HANG, RESET, Answer, Asked, Server, context, one_by_one, said, serving

FILE = Partition("in", "a.jsonl")


class Letters:
    """What a sink set aside."""

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []

    async def put(self, rejected: Sequence[Rejected]) -> None:
        self.rejected += rejected

    def values(self) -> list[Any]:
        return [one.row.to_pylist()[0]["n"] for one in self.rejected if one.row is not None]


class Settled:
    """Batches of numbers, and whether they are settled."""

    def __init__(self) -> None:
        self.count = 0
        self._at = 0

    def batch(self, *numbers: int) -> Batch:
        def settle() -> None:
            self.count += 1

        first, self._at = self._at, self._at + 10
        data = pa.record_batch({"n": pa.array(numbers, pa.int64())})
        return Batch(
            data, (Span(FILE, first, self._at),), Tally(read=len(numbers)), Ack(settle), {"in": f"at {self._at}"}
        )


def sink_to(server: Server, data_dir: Path, *, letters: Letters | None = None, **options: Any) -> HttpSink:
    config = HttpSinkConfig(**{"url": server.url("/in"), **options})
    return HttpSink(config, context(data_dir, "out", dead_letters=letters))


async def ran(sink: HttpSink, *batches: Message) -> HttpSink:
    """Open a sink, run it to the end of these batches, and close it."""
    send, receive = trio.open_memory_channel[Message](len(batches) + 1)
    for message in (*batches, Eos()):
        await send.send(message)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sink.close)
        await sink.open()
        await sink.run(receive)
    return sink


async def stored(server: Server, data_dir: Path, **options: Any) -> Any:
    sink = sink_to(server, data_dir, **options)
    found = await sink.open()
    await sink.close()
    return found


def numbers(request: Asked) -> list[int]:
    rows = json.loads(b"[" + b",".join(request.body.split()) + b"]") if b"}\n" in request.body else request.json
    return [row["n"] for row in (rows if isinstance(rows, list) else [rows])]


def refusing(*poison: int, status: int = 400) -> Any:
    """Refuses whole requests that hold one of these numbers."""
    return lambda asked: said({"why": "poison"}, status) if {*poison} & {*numbers(asked)} else said({})


# -------------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    ("form", "bodies", "kind"),
    [
        ("json_array", [b'[{"n":1},{"n":2}]', b'[{"n":3}]'], "application/json"),
        ("json_lines", [b'{"n":1}\n{"n":2}\n', b'{"n":3}\n'], "application/x-ndjson"),
        ("json_each", [b'{"n":1}', b'{"n":2}', b'{"n":3}'], "application/json"),
    ],
)
async def test_rows_are_sent_in_order_as_the_format_says(
    data_dir: Path, form: str, bodies: list[bytes], kind: str
) -> None:
    with serving(lambda _: Answer(204)) as server:
        done = await ran(
            sink_to(server, data_dir, format=form, batch={"rows": 2}, method="PUT"), Settled().batch(1, 2, 3)
        )
    assert [request.body for request in server.asked] == bodies
    assert {(request.method, request.path, request.headers["content-type"]) for request in server.asked} == {
        ("PUT", "/in", kind)
    }
    assert (done.report().rows, done.report().commits, done.taken) == (3, 1, Tally(read=3))


async def test_headers_are_sent_and_their_secrets_shown_nowhere(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKEN", "Bearer hunter2")
    (tmp_path / "key").write_text("swordfish\n")
    headers = {"Authorization": "env:TOKEN", "X-Key": f"file:{tmp_path / 'key'}", "X-Plain": "open-sesame"}
    with (
        structlog.testing.capture_logs() as logs,
        serving(lambda asked: Answer(403, str(asked.headers).encode())) as server,
    ):
        sink = sink_to(server, data_dir, headers=headers)
        with pytest.raises(ConfigError) as error:
            await ran(sink, Settled().batch(1))
    sent = server.asked[0].headers
    assert (sent["authorization"], sent["x-key"], sent["x-plain"]) == ("Bearer hunter2", "swordfish", "open-sesame")
    told = f"{error.value} {logs} {sink.config} {sink.config!r} {sink.config.model_dump()}"
    assert not [secret for secret in ("hunter2", "swordfish", "open-sesame") if secret in told]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("env:NOT_SET_ANYWHERE", "headers.X: the secret env:NOT_SET_ANYWHERE: the variable .* is not set"),
        ("word\r\nX-Other: 1", "headers.X: its value is empty, begins or ends with a space, or holds a character"),
        ("schlüssel", "headers.X: its value is empty"),
    ],
)
async def test_a_header_without_a_usable_value_is_named_without_it(data_dir: Path, header: str, message: str) -> None:
    with serving(lambda _: said({})) as server, pytest.raises(ConfigError, match=message) as error:
        await ran(sink_to(server, data_dir, headers={"X": header}))
    assert "word" not in str(error.value)
    assert "schl" not in str(error.value)


@given(
    sizes=st.lists(st.integers(0, 30), max_size=30),
    rows_max=st.integers(1, 10),
    bytes_max=st.integers(1, 100),
)
def test_pieces_hold_all_rows_in_order_within_their_limits(sizes: list[int], rows_max: int, bytes_max: int) -> None:
    data = pa.record_batch({"t": ["x" * size for size in sizes]})
    pieces = pieces_of(data, rows_max=rows_max, bytes_max=bytes_max)
    assert [row for piece in pieces for row in piece.rows] == json_rows(data)
    assert [piece.first for piece in pieces] == [sum(len(p.rows) for p in pieces[:k]) for k in range(len(pieces))]
    for piece in pieces:
        assert 1 <= len(piece.rows) <= rows_max
        assert len(piece.rows) == 1 or sum(map(len, piece.rows)) <= bytes_max


def test_every_type_has_a_json_form() -> None:
    data = pa.RecordBatch.from_pydict(
        {
            "text": pa.array(["ä\n", None], pa.string_view()),
            "dictionary": pa.array(["a", None]).dictionary_encode(),
            "double": pa.array([float("nan"), 1.5]),
            "decimal": pa.array([None, "12345678901234567890.50"], pa.string()).cast(pa.decimal128(30, 2)),
            "instant": pa.array([0, None], pa.timestamp("us", "UTC")),
            "bytes": pa.array([b"\xff", None]),
            "nested": pa.array([{"a": [1, None], "b": {"c": float("inf")}}, None]),
            "null": pa.nulls(2),
        }
    )
    assert [json.loads(row) for row in json_rows(data)] == [
        {
            "text": "ä\n",
            "dictionary": "a",
            "double": None,
            "decimal": None,
            "instant": "1970-01-01T00:00:00Z",
            "bytes": "/w==",
            "nested": {"a": [1, None], "b": {"c": None}},
            "null": None,
        },
        {
            "text": None,
            "dictionary": None,
            "double": 1.5,
            "decimal": "12345678901234567890.50",
            "instant": None,
            "bytes": None,
            "nested": None,
            "null": None,
        },
    ]
    assert json_rows(data.select([])) == [b"{}", b"{}"]
    assert json_rows(data.slice(0, 0)) == []


# -------------------------------------------------------------------- positions


async def test_a_batch_is_settled_and_stored_once_all_its_rows_are_taken(data_dir: Path) -> None:
    settled = Settled()
    with serving(one_by_one(said({}), said({}), Answer(404))) as server:
        with pytest.raises(ConfigError, match="answers 404; there is nothing; check url"):
            await ran(sink_to(server, data_dir, batch={"rows": 1}), settled.batch(1, 2), settled.batch(3, 4))
        assert settled.count == 1
        held = await stored(server, data_dir)
    assert held == {FILE: Position(10)}
    assert held.states == {"in": "at 10"}


async def test_a_batch_without_rows_moves_the_positions_and_asks_nobody(data_dir: Path) -> None:
    settled = Settled()
    with serving(lambda _: said({})) as server:
        await ran(sink_to(server, data_dir), settled.batch())
        assert server.asked == []
        assert await stored(server, data_dir) == {FILE: Position(10)}
    assert settled.count == 1


async def test_another_address_starts_from_the_beginning(data_dir: Path) -> None:
    with serving(lambda _: said({})) as server:
        await ran(sink_to(server, data_dir), Settled().batch(1))
        assert await stored(server, data_dir, url=server.url("/other")) == {}
        assert await stored(server, data_dir, url=server.url("/in?table=b")) == {}
        assert await stored(server, data_dir, headers={"X-Key": "another"}) == {FILE: Position(10)}


def test_a_destination_tells_addresses_apart_and_shows_no_query(data_dir: Path) -> None:
    def destination(url: str) -> str:
        return HttpSink(HttpSinkConfig(url=url), context(data_dir, "out")).destination

    assert destination("https://a.org/in") == "POST https://a.org/in"
    assert destination("https://a.org/in?key=k1") != destination("https://a.org/in?key=k2")
    assert "k1" not in destination("https://a.org/in?key=k1")


async def test_a_renamed_pipeline_goes_on_where_it_was(data_dir: Path) -> None:
    with serving(lambda _: said({})) as server:
        await ran(sink_to(server, data_dir), Settled().batch(1))
        renamed = OperatorContext("default/new", "out", data_dir, trio.CapacityLimiter(1), adopt_from="default/p")
        config = HttpSinkConfig(url=server.url("/in"))
        for _ in range(2):
            sink = HttpSink(config, renamed)
            assert await sink.open() == {FILE: Position(10)}
            await sink.close()
        stranger = HttpSink(
            config, OperatorContext("a/b", "out", data_dir, trio.CapacityLimiter(1), adopt_from="no/one")
        )
        with pytest.raises(Refused, match="no/one has no positions to take over"):
            await stranger.open()
        await stranger.close()


# -------------------------------------------------------------------- what may pass


@pytest.mark.parametrize("fault", [said({}, 503), said({}, 500), said({}, 429), said({}, 408), RESET])
async def test_what_may_pass_is_sent_again_under_the_same_key(data_dir: Path, fault: Any) -> None:
    with serving(one_by_one(fault, fault, said({}))) as server:
        await ran(sink_to(server, data_dir), Settled().batch(1, 2))
    assert [numbers(request) for request in server.asked] == [[1, 2]] * 3
    assert len({request.headers["idempotency-key"] for request in server.asked}) == 1


async def test_an_outage_ends_the_sink_after_its_retries_and_stores_nothing(data_dir: Path) -> None:
    settled, letters = Settled(), Letters()
    with serving(lambda _: said("away", 503)) as server:
        with pytest.raises(Retryable, match=r'/in: answers 503 \("away"\)'):
            await ran(sink_to(server, data_dir, letters=letters), settled.batch(1))
        assert len(server.asked) == 4
        assert await stored(server, data_dir) == {}
    assert (settled.count, letters.rejected) == (0, [])


async def test_an_answer_that_never_comes_is_an_outage(data_dir: Path) -> None:
    with serving(lambda _: HANG) as server, pytest.raises(Retryable, match=r"no whole answer within 0\.05 s"):
        await ran(sink_to(server, data_dir, timeout="50ms"), Settled().batch(1))
    assert len(server.asked) == 4


@pytest.fixture
def racing_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(rate=200)


async def test_the_receiver_says_how_long_to_wait_up_to_a_minute(
    data_dir: Path, racing_clock: trio.testing.MockClock
) -> None:
    busy = said({}, 429, Retry_After="7"), said({}, 503, Retry_After="86400"), said({}, 503, Retry_After="soon")
    with structlog.testing.capture_logs() as logs, serving(one_by_one(*busy, said({}))) as server:
        started = trio.current_time()
        await ran(sink_to(server, data_dir, read_timeout="1h", timeout="1h"), Settled().batch(1))
        assert trio.current_time() - started >= 67
    waits = [entry["wait_seconds"] for entry in logs]
    assert waits[:2] == [7.0, 60.0]
    assert waits[2] <= 0.002


async def test_requests_keep_their_distance(data_dir: Path, hasty_clock: trio.testing.MockClock) -> None:
    times: list[float] = []
    with serving(lambda _: said({})) as server:
        sink = sink_to(server, data_dir, batch={"rows": 1}, rate_limit={"requests_per_second": 0.5}, concurrency=3)
        paced = sink._paced

        async def noted() -> None:
            await paced()
            times.append(trio.current_time())

        sink._paced = noted
        await ran(sink, Settled().batch(1, 2, 3, 4))
    assert len(times) == 4
    assert times[-1] - times[0] >= 3 * 2


async def test_with_concurrency_requests_overlap_and_batches_do_not(data_dir: Path) -> None:
    """A server that answers the first of a batch only when all of that batch are there."""
    import threading

    barrier, settled = threading.Barrier(3), Settled()

    def script(asked: Asked) -> Answer:
        barrier.wait(20)
        return said({})

    with serving(script) as server:
        sink = sink_to(server, data_dir, batch={"rows": 1}, concurrency=3)
        await ran(sink, settled.batch(1, 2, 3), settled.batch(4, 5, 6))
        assert await stored(server, data_dir) == {FILE: Position(20)}
    assert [{*numbers(a), *numbers(b), *numbers(c)} for a, b, c in (server.asked[:3], server.asked[3:])] == [
        {1, 2, 3},
        {4, 5, 6},
    ]


# -------------------------------------------------------------------- what will never pass


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_rows_that_make_a_request_fail_become_dead_letters_and_all_others_arrive(
    data_dir: Path, status: int
) -> None:
    letters, settled = Letters(), Settled()
    with serving(refusing(3, 6, status=status)) as server:
        done = await ran(sink_to(server, data_dir, letters=letters), settled.batch(*range(8)))
        taken = sorted(n for asked in server.asked if not {3, 6} & {*numbers(asked)} for n in numbers(asked))
        assert await stored(server, data_dir) == {FILE: Position(10)}
    assert taken == [0, 1, 2, 4, 5, 7]
    assert letters.values() == [3, 6]
    assert [(one.place.record.partition, one.place.record.offset, one.place.part) for one in letters.rejected] == [
        (FILE, 0, 3),
        (FILE, 0, 6),
    ]
    assert str(letters.rejected[0].error).endswith(f'/in: answers {status} ({{"why": "poison"}})')
    assert done.taken == Tally(read=8, dead=2)
    assert (done.report().rows, settled.count) == (6, 1)


async def test_one_poison_row_costs_a_logarithm_of_requests(data_dir: Path) -> None:
    with serving(refusing(300)) as server:
        await ran(sink_to(server, data_dir, letters=Letters()), Settled().batch(*range(500)))
    assert len(server.asked) <= 2 * 9 + 1


async def test_however_many_rows_are_refused_each_is_a_dead_letter_for_less_than_two_requests(data_dir: Path) -> None:
    letters, settled = Letters(), Settled()
    with serving(lambda _: Answer(400)) as server:
        sink = sink_to(server, data_dir, letters=letters, batch={"rows": 64}, concurrency=4)
        done = await ran(sink, settled.batch(*range(150)))
    assert letters.values() == list(range(150))
    assert len(server.asked) < 2 * 150
    assert (done.taken, settled.count) == (Tally(read=150, dead=150), 1)


async def test_however_many_rows_an_answer_names_each_is_a_dead_letter_for_one_request(data_dir: Path) -> None:
    letters = Letters()
    with serving(lambda _: said({"r": [{"status": "no"}] * 1100})) as server:
        sink = sink_to(server, data_dir, letters=letters, batch={"rows": 1100}, results={"path": "r"})
        await ran(sink, Settled().batch(*range(1100)))
    assert letters.values() == list(range(1100))
    assert len(server.asked) == 1


async def test_without_dead_letters_the_first_refusal_stops_the_sink_and_names_the_rows(data_dir: Path) -> None:
    with serving(refusing(3)) as server:
        with pytest.raises(BatchError, match=r"a\.jsonl bytes 0 to 10, row 2 \(a request of rows 2 to 3\): .*400"):
            await ran(sink_to(server, data_dir, batch={"rows": 2}), Settled().batch(*range(6)))
        assert await stored(server, data_dir) == {}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the credentials are missing or wrong; check headers"),
        (403, "the credentials do not allow this; check headers"),
        (404, "there is nothing; check url"),
        (405, "the address does not take this method"),
        (409, "check url"),
        (415, "it does not take this format"),
        (302, "answers 302"),
    ],
)
async def test_what_somebody_must_mend_stops_at_once_and_names_no_query(
    data_dir: Path, status: int, message: str
) -> None:
    letters = Letters()
    answer = Answer(status, headers={"location": "/new?key=k"})
    with serving(lambda _: answer) as server, pytest.raises(ConfigError, match=message) as error:
        await ran(sink_to(server, data_dir, letters=letters, url=server.url("/in?key=k")), Settled().batch(1, 2))
    assert f"{server.url('/in')}: answers {status}" in str(error.value)
    assert "key=k" not in str(error.value)
    assert (len(server.asked), letters.rejected) == (1, [])


# -------------------------------------------------------------------- results record by record


async def test_results_say_which_records_failed(data_dir: Path) -> None:
    letters = Letters()

    def script(asked: Asked) -> Answer:
        return said(
            {"results": [{"status": "ok"} if n % 3 else {"status": "bad", "error": f"no {n}"} for n in numbers(asked)]}
        )

    with serving(script) as server:
        sink = sink_to(server, data_dir, letters=letters, results={"path": "results"}, batch={"rows": 4})
        done = await ran(sink, Settled().batch(*range(1, 8)))
    assert [numbers(request) for request in server.asked] == [[1, 2, 3, 4], [5, 6, 7]]
    assert letters.values() == [3, 6]
    assert str(letters.rejected[1].error).endswith("/in: bad: no 6")
    assert done.report().rows == 5


async def test_results_may_lie_deeper_and_be_numbers(data_dir: Path) -> None:
    letters = Letters()
    answer = said({"a": {"items": [{"index": {"status": 201}}, {"index": {"status": 429, "why": {"x": 1}}}]}})
    results = {"path": "a.items", "status": "index.status", "ok": [200, 201], "error": "index.why"}
    with serving(lambda _: answer) as server:
        await ran(sink_to(server, data_dir, letters=letters, results=results), Settled().batch(1, 2))
    assert [(one.row.to_pylist(), str(one.error)[-13:]) for one in letters.rejected] == [
        ([{"n": 2}], ': 429: {"x": 1}'[-13:])
    ]


async def test_results_may_be_the_answer_itself(data_dir: Path) -> None:
    letters = Letters()
    with serving(lambda _: said([True, False])) as server:
        results = {"path": "", "status": "", "ok": [True]}
        await ran(sink_to(server, data_dir, letters=letters, results=results), Settled().batch(1, 2))
    assert letters.values() == [2]


async def test_a_failed_result_without_dead_letters_stops_the_sink(data_dir: Path) -> None:
    answer = said({"results": [{"status": "ok"}, {"status": "bad"}]})
    with (
        serving(lambda _: answer) as server,
        pytest.raises(BatchError, match=r"row 1 \(a request of rows 0 to 1\): .*bad$"),
    ):
        await ran(sink_to(server, data_dir, results={"path": "results"}), Settled().batch(1, 2))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(body=b"fine"), r"the answer \(no content type\) is not JSON"),
        (said({"a": 1, "b": 2}), r"no list at results.path \('results'\); its keys are a, b"),
        (said([]), "no list at results.path .*; it is no object"),
        (said({"results": [{"status": "ok"}]}), "1 results for 2 records, so which failed cannot be told"),
        (said({"results": [{"status": "ok"}, {}]}), "result 1 has nothing at results.status"),
    ],
)
async def test_an_answer_that_does_not_tell_stops_the_sink(data_dir: Path, answer: Answer, message: str) -> None:
    settled, letters = Settled(), Letters()
    with serving(lambda _: answer) as server, pytest.raises(ConfigError, match=message):
        await ran(sink_to(server, data_dir, letters=letters, results={"path": "results"}), settled.batch(1, 2))
    assert (settled.count, letters.rejected) == (0, [])


# -------------------------------------------------------------------- in the engine


async def test_a_run_that_failed_goes_on_where_it_stopped(data_dir: Path) -> None:
    world = World(tables={"t": numbered(20)})
    with serving(one_by_one(*[said({})] * 2, said("no", 403))) as server:
        pipe = line(source(), stage("out", "sink", "http", url=server.url()), name="p")
        first = await run(world, pipe, data_dir)
        assert [name for name, _ in first.failed()] == ["out"]
        server.script = lambda _: said({})
        assert (await run(world, pipe, data_dir)).failed() == []
    arrived = [n for number, asked in enumerate(server.asked) for n in numbers(asked) if number != 2]
    assert arrived == list(range(20))


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_fails_every_row_arrives_or_is_a_letter(data_dir: Path, seed: int) -> None:
    """Faults at random, runs until one is whole; beside a table, from which rows arrive exactly once."""
    random = Random(seed)
    poison = set(random.sample(range(60), 4))
    taken: dict[str, list[int]] = {}

    def script(asked: Asked) -> Answer | str:
        if random.random() < 0.2:
            return random.choice([RESET, said({}, 503), said({}, 502), said({}, 401), HANG])
        if poison & {*numbers(asked)}:
            return said({}, 422)
        taken.setdefault(asked.headers["idempotency-key"], numbers(asked))
        return random.choice([RESET, said({}), said({}), said({})])  # an answer may be lost

    world = World(tables={"t": numbered(60)})
    with serving(script) as server:
        http = stage("http", "sink", "http", url=server.url(), batch={"rows": 3}, concurrency=2, timeout="100ms")
        pipe = pipeline([source(), http, sink("table")], [Edge("in", "http"), Edge("in", "table")])
        for _ in range(200):
            outcome = await run(world, pipe, data_dir)
            if not outcome.failed():
                break
    assert outcome.failed() == []
    assert sorted(n for rows in taken.values() for n in rows) == sorted({*range(60)} - poison), "by key, exactly once"
    assert {stored.letter.key.offset // 10 for stored in outcome.letters_of()} == poison
    assert [row["n"] for row in world.kept("default/p", "table").rows] == list(range(60))


async def test_two_sinks_to_one_address_are_refused(data_dir: Path) -> None:
    with serving(lambda _: said({})) as server:
        sinks = [stage(name, "sink", "http", url=server.url()) for name in ("a", "b")]
        pipe = pipeline([source(), *sinks], [Edge("in", "a"), Edge("in", "b")])
        with pytest.raises(ConfigError, match="the sinks 'a' and 'b' both write to POST http://127"):
            await run(World(tables={"t": []}), pipe, data_dir)


async def test_copies_of_letters_that_the_receiver_refuses_stop_the_run_and_make_no_more_letters(
    data_dir: Path,
) -> None:
    world = World(tables={"t": [*numbered(3), {"n": 3, "v": 3, "k": "a", "o": {"x": 3}, "bad": True}]})
    with serving(lambda _: said({}, 422)) as server:
        copies = stage("copies", "sink", "http", url=server.url())
        pipe = pipeline([source(), sink("table"), copies], [Edge("in", "table")], dlq=replace(DLQ, sink="copies"))
        outcome = await run(world, pipe, data_dir)
        assert [name for name, _ in outcome.failed()] == ["copies"]
        assert len(outcome.letters) == 1
        server.script = lambda _: said({})
        outcome = await run(world, pipe, data_dir)
    assert (outcome.failed(), len(outcome.letters)) == ([], 1)
    assert [len(request.json) for request in server.asked] == [1, 1]
    assert [row["n"] for row in world.kept("default/p", "table").rows] == [0, 1, 2]
