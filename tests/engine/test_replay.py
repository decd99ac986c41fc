"""Replays in this process: whatever is cut short, mended or added in between, every sink has every row once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, RecordError
from conveyord.core.pipeline.graph import Edge, Pipeline
from conveyord.engine import local_run
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.preparation import Limits
from conveyord.engine.registry import Registry
from conveyord.engine.replay import ReplayReport, replay
from conveyord.storage.dead_letters.letters import Selection
from tests.engine.graph_rig import (
    GIGABYTE,
    RIG,
    SCHEMA,
    RepeatConfig,
    RigRegistry,
    RowsSource,
    World,
    fast_clock,
    letters_in,
    numbered,
    pipeline,
    sink,
    source,
    transform,
)
from tests.storage.dead_letters_rig import opened

ROWS, PARTS = 14, 3
EVERY_ROW = [(n, i) for n in range(ROWS) for i in range(PARTS)]


@dataclass
class Flawed(World):
    """A world in which definitions can be mended and broken: what fails for ever is decided here, by stage."""

    bad: dict[str, set[Any]] = field(default_factory=dict)

    def registry(self) -> Registry:
        own = {("source", "rows"): Readable, ("transform", "fussy"): Fussy, ("transform", "split"): Split}
        made = {f"{k}.{n}": type(o.__name__, (o,), {"world": self}) for (k, n), o in {**RIG, **own}.items()}
        return RigRegistry(super().registry().by_name, made)


class Readable(RowsSource):
    """Its letters can be read once more. A record is bad if the world says so."""

    world: ClassVar[Flawed]

    async def _send(self, out: Any, partition: Any, rows: list[Any], at: int, end: int) -> None:
        bad = self.world.bad.get("in", set())
        marked = [{**row, "bad": row["n"] in bad} for row in rows]
        await super()._send(out, partition, marked, at, end)

    def decode(self, raw: bytes, state: str | None) -> pa.RecordBatch:
        rows = [json.loads(raw)] if raw != b"[]" else []
        if rows and rows[0]["n"] in self.world.bad.get("in", set()):
            raise RecordError("the record", "bad")
        return pa.RecordBatch.from_pylist(rows, SCHEMA)


class Split(BatchTransform):
    """Makes rows of each, told apart by `i`. Every other row of the source gets a column more."""

    Config = RepeatConfig
    pure = True

    def row_wise(self, data: pa.RecordBatch) -> bool:
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        rows = data.take(pa.array([row for row in range(data.num_rows) for _ in range(PARTS)], pa.int64()))
        return rows.append_column("i", pa.array(list(range(PARTS)) * data.num_rows, pa.int64()))


class Fussy(BatchTransform):
    """Fails on the rows that the world names for its stage: by `n`, or by `(n, i)` where there is an `i`."""

    Config = RepeatConfig
    pure = True
    world: ClassVar[Flawed]

    def row_wise(self, data: pa.RecordBatch) -> bool:
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        bad = self.world.bad.get(self.context.stage, set())
        for row in data.to_pylist():
            if (row["n"] in bad) or ((row["n"], row.get("i")) in bad):
                raise BatchError(f"{self.context.stage} does not like {row['n']}")
        return data


def graph(
    *, late: bool = False, spill: bool = False, away: Collection[str] = (), commits: tuple[int, ...] = (1, 2, 3, 4, 5)
) -> Pipeline:
    """Rows become several, a branch is conditional, two come together, one has nothing to do with the others.

    late: with one more sink behind the stage at which most fails. away: sinks that are left out, with stages that
    lead nowhere else.
    """
    names = ("one", "two", "three", "four", "five")
    one, two, three, four, five = (sink(name, commit_batches=n) for name, n in zip(names, commits, strict=True))
    stages = [source(), transform("a", "fussy"), transform("split", "split"), transform("b", "fussy")]
    stages += [transform("c", "fussy"), transform("e", "fussy"), transform("join", "slow"), transform("d", "fussy")]
    edges: list[Any] = [("in", "a"), ("a", "split"), ("split", "b")]
    edges += [Edge("b", "one", on_slow="spill" if spill else "wait"), Edge("b", "two", when="i = 0")]
    edges += [("b", "c"), ("b", "e"), ("c", "join"), ("e", "join"), ("join", "three")]
    edges += [("in", "d"), ("d", "four")]
    if late:
        edges.append(("b", "five"))
    out = {*away, *(["d"] if "four" in away else [])}
    stages = [stage for stage in [*stages, one, two, three, four, *([five] if late else [])] if stage.name not in out]
    ends = [(edge.source, edge.target) if isinstance(edge, Edge) else edge for edge in edges]
    return pipeline(stages, [edge for edge, both in zip(edges, ends, strict=True) if not out & {*both}])


def expected(*, late: bool = False) -> dict[str, Counter[Any]]:
    found = {
        "one": Counter(EVERY_ROW),
        "two": Counter((n, 0) for n in range(ROWS)),
        "three": Counter(EVERY_ROW * 2),
        "four": Counter((n, None) for n in range(ROWS)),
    }
    return {**found, "five": Counter(EVERY_ROW)} if late else found


def arrived(world: World, pipe: str = "default/p") -> dict[str, Counter[Any]]:
    return {
        name: Counter((row["n"], row.get("i")) for row in kept.rows)
        for (owner, name), kept in world.sinks.items()
        if owner == pipe
    }


class Cut:
    """Stands in for a world's delays: after so many of them everything is cancelled, as if the process were killed."""

    def __init__(self, pauses: int | None, scope: trio.CancelScope, seed: int) -> None:
        self._left, self._scope, self._random = pauses, scope, Random(seed)

    def choice(self, options: list[float]) -> float:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._scope.cancel()
        return self._random.choice(options)


def request_of(world: World, pipelines: tuple[Pipeline, ...], data_dir: Path) -> local_run.RunRequest:
    return local_run.RunRequest(pipelines, data_dir, 2, 2, Limits(GIGABYTE, None, GIGABYTE))


def acted(world: Flawed, work: Callable[[], Awaitable[Any]], *, pauses: int | None = None, seed: int = 0) -> Any:
    async def main() -> Any:
        with trio.CancelScope() as scope:
            world.delays = Cut(pauses, scope, seed)  # type: ignore[assignment]
            return await work()

    return trio.run(main, clock=fast_clock())


def run(world: Flawed, data_dir: Path, *pipelines: Pipeline, **cut: Any) -> Any:
    request = request_of(world, pipelines, data_dir)

    async def work() -> Any:
        progress = local_run.progress_of(request, world.registry())
        return await local_run.run_pipelines(request, world.registry(), drain=trio.Event(), progress=progress)

    return acted(world, work, **cut)


def replayed(
    world: Flawed, data_dir: Path, pipe: Pipeline, selection: Selection | None = None, **cut: Any
) -> ReplayReport | None:
    request = request_of(world, (pipe,), data_dir)

    async def work() -> ReplayReport:
        chosen = Selection() if selection is None else selection
        (report,) = await replay(request, world.registry(), chosen, drain=trio.Event())
        return report

    return acted(world, work, **cut)


def counts(report: ReplayReport) -> tuple[int, int, int, int]:
    assert report.error is None, report.error
    return report.replayed, report.failed_again, report.waiting, report.unusable


def settled(world: Flawed, data_dir: Path, pipe: Pipeline, *, late: bool = False) -> None:
    """Mend everything, let everything end, and assert that every row is where it belongs, once."""
    world.bad, world.sink_faults = {}, {}
    replayed(world, data_dir, pipe)
    assert all(summary.error is None for summary in run(world, data_dir, pipe))
    report = replayed(world, data_dir, pipe)
    assert report is not None
    assert counts(report)[1:] == (0, 0, 0)
    assert arrived(world) == expected(late=late)
    assert letters_in(data_dir) == []


Act = tuple[str, int | None, dict[str, set[Any]], int, set[str]]
numbers = st.integers(0, ROWS - 1)
parts = st.sampled_from(EVERY_ROW)
flaws = st.fixed_dictionaries(
    {
        "in": st.sets(numbers, max_size=3),
        "a": st.sets(numbers, max_size=3),
        "b": st.sets(parts, max_size=8),
        "c": st.sets(parts, max_size=8),
        "e": st.sets(parts, max_size=4),
        "d": st.sets(numbers, max_size=3),
    }
)
away = st.just(set[str]()) | st.sets(st.sampled_from(["one", "two", "four"]), max_size=2)
acts = st.tuples(st.sampled_from(["run", "replay"]), st.none() | st.integers(0, 60), flaws, st.integers(0, 3), away)


history = st.lists(acts, min_size=1, max_size=6), st.integers(0, 6), st.booleans()


@settings(max_examples=20)
@given(*history)
def test_whatever_is_cut_short_and_mended_every_row_arrives_once(
    actions: list[Act], late_from: int, spill: bool
) -> None:
    relive(actions, late_from, spill)


@pytest.mark.check
@pytest.mark.timeout(900)
@settings(max_examples=300)
@given(*history)
def test_whatever_is_cut_short_and_mended_every_row_arrives_once_often(
    actions: list[Act], late_from: int, spill: bool
) -> None:
    relive(actions, late_from, spill)


def relive(actions: list[Act], late_from: int, spill: bool) -> None:
    """Do one thing after the other. late_from: the number of the action at which the pipeline gets a sink more."""
    world = Flawed({"t": numbered(ROWS)})
    with TemporaryDirectory() as home:
        data_dir = Path(home)
        late = False
        for number, (kind, pauses, bad, seed, out) in enumerate(actions):
            late = number >= late_from
            world.bad = bad
            act = run if kind == "run" else replayed
            act(world, data_dir, graph(late=late, spill=spill, away=out), pauses=pauses, seed=seed)
        settled(world, data_dir, graph(late=late, spill=spill), late=late)


# ---------------------------------------------------------------------------- one case each


@pytest.fixture
def world() -> Flawed:
    return Flawed({"t": numbered(ROWS)})


def forked() -> Pipeline:
    """in -> a -> one and two, which commit at different times."""
    sinks = [sink("one"), sink("two", commit_batches=1_000)]
    return pipeline([source(), transform("a", "fussy"), *sinks], [("in", "a"), ("a", "one"), ("a", "two")])


def ns(world: World, name: str, pipe: str = "default/p") -> list[int]:
    return sorted(row["n"] for row in world.kept(pipe, name).rows)


def cut_between(world: Flawed, data_dir: Path, pipe: Pipeline) -> None:
    """A run after which the sink `one` has the first records and `two`, which fails before its commit, has none."""
    world.sink_faults = {("default/p", "two"): 5}
    run(world, data_dir, pipe)
    assert ns(world, "one")
    assert not ns(world, "two")


def test_a_record_read_again_for_one_sink_is_replayed_for_the_other_only(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {1, 2}}
    cut_between(world, data_dir, forked())
    world.bad = {}  # mended: the second sink gets the rows when their records are read again
    run(world, data_dir, forked())
    assert ns(world, "two") == list(range(ROWS))
    report = replayed(world, data_dir, forked())
    assert report is not None
    assert counts(report) == (2, 0, 0, 0)
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))


def test_a_letter_waits_for_every_sink_to_pass_its_record(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {1, 2}}
    cut_between(world, data_dir, forked())
    report = replayed(world, data_dir, forked())
    assert report is not None
    assert counts(report) == (0, 0, 2, 0)
    assert ns(world, "two") == []


def test_a_letter_that_no_sink_has_passed_is_dropped_when_its_record_is_read_again(
    world: Flawed, data_dir: Path
) -> None:
    world.bad = {"a": {1, 2}}
    world.sink_faults = {("default/p", "one"): 0, ("default/p", "two"): 0}
    run(world, data_dir, forked())
    assert (ns(world, "one"), len(letters_in(data_dir))) == ([], 2)
    world.bad = {}
    run(world, data_dir, forked())
    assert letters_in(data_dir) == []
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))


def test_a_sink_that_is_added_gets_its_rows_and_the_others_none_twice(world: Flawed, data_dir: Path) -> None:
    """All records are read again for it, and those that were replayed to the others fail once more."""
    two = [("in", "a"), ("a", "one"), ("in", "two")]
    stages = [source(), transform("a", "fussy"), sink("one"), sink("two")]
    world.bad = {"a": {1, 2}}
    run(world, data_dir, pipeline(stages, two))
    world.bad = {}
    replayed(world, data_dir, pipeline(stages, two))
    world.bad = {"a": {1, 2, 3}}
    elsewhere = pipeline([*stages, sink("new")], [*two, ("in", "new")])
    run(world, data_dir, elsewhere)
    assert letters_in(data_dir) == [], "that stage's rows had arrived, so nobody lacks what fails now"
    behind = pipeline([*stages, sink("new"), sink("newer")], [*two, ("in", "new"), ("a", "newer")])
    run(world, data_dir, behind)
    assert [stored.letter.sinks for stored in letters_in(data_dir)] == [{"newer"}] * 3
    world.bad = {}
    replayed(world, data_dir, behind)
    for name in ("one", "two", "new", "newer"):
        assert ns(world, name) == list(range(ROWS))


def test_a_pipeline_that_shares_a_source_fails_no_record_of_another_again(world: Flawed, data_dir: Path) -> None:
    stages, edges = [source(), transform("a", "fussy"), sink("one")], [("in", "a"), ("a", "one")]
    first, second = pipeline(stages, edges), pipeline(stages, edges, name="q")
    world.bad = {"a": {1, 2}}
    run(world, data_dir, first)
    world.bad = {}
    replayed(world, data_dir, first)
    world.bad = {"a": {1, 2}}
    run(world, data_dir, first, second)
    world.bad = {}
    replayed(world, data_dir, first)
    replayed(world, data_dir, second)
    assert ns(world, "one") == ns(world, "one", "default/q") == list(range(ROWS))


def test_what_fails_on_the_way_to_nobody_who_lacks_it_is_no_letter(world: Flawed, data_dir: Path) -> None:
    """A letter for the new sink passes a stage of the other branch again, which has had the record long ago."""
    stages, edges = [source(), transform("a", "fussy"), sink("one")], [("in", "a"), ("a", "one")]
    run(world, data_dir, pipeline(stages, edges))
    both = pipeline([*stages, sink("new")], [*edges, ("in", "new")])
    world.bad = {"in": {0}}
    run(world, data_dir, both)
    assert [stored.letter.sinks for stored in letters_in(data_dir)] == [{"new"}]
    world.bad = {"a": {0}}
    report = replayed(world, data_dir, both)
    assert report is not None
    assert counts(report) == (1, 0, 0, 0)
    assert letters_in(data_dir) == []
    world.bad = {}
    replayed(world, data_dir, both)
    assert ns(world, "one") == ns(world, "new") == list(range(ROWS))


def two_ways(*names: str) -> Pipeline:
    """One fussy stage before as many sinks."""
    stages = [source(), transform("a", "fussy"), *(sink(name) for name in names)]
    return pipeline(stages, [("in", "a"), *(("a", name) for name in names)])


def test_a_sink_that_is_away_during_a_replay_gets_its_letters_when_it_is_back(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {0, 1}}
    run(world, data_dir, two_ways("one", "two"))
    world.bad = {"a": {1}}
    report = replayed(world, data_dir, two_ways("one"))
    assert report is not None
    assert counts(report) == (0, 0, 0, 0)
    assert report.absent == {"two": 2}, "they go to both sinks or to none"
    world.bad = {}
    for names in (["one"], ["one", "two"], ["one", "two"]):
        run(world, data_dir, two_ways(*names))
        replayed(world, data_dir, two_ways(*names))
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))
    assert letters_in(data_dir) == []


def test_a_run_with_other_sinks_leaves_the_letters_of_those_that_are_away(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {0, 1}}
    run(world, data_dir, two_ways("one", "two"))
    run(world, data_dir, two_ways("other"))
    world.bad = {}
    replayed(world, data_dir, two_ways("other"))
    run(world, data_dir, two_ways("one", "two"))
    replayed(world, data_dir, two_ways("one", "two", "other"))
    assert ns(world, "one") == ns(world, "two") == ns(world, "other") == list(range(ROWS))
    assert letters_in(data_dir) == []


@pytest.mark.parametrize("first", ["one", "two"])
def test_a_replay_that_was_killed_goes_on_for_each_sink_whichever_is_away(
    world: Flawed, data_dir: Path, first: str
) -> None:
    """One sink has some of the letters, the other none; what each has is told by the letters' numbers."""
    world.tables["t"] = numbered(40)
    world.bad = {"a": set(range(20))}
    run(world, data_dir, two_ways("one", "two"))
    world.bad = {"a": {3}}
    world.sink_faults = {("default/p", "two"): 0}
    replayed(world, data_dir, two_ways("one", "two"))
    replayed(world, data_dir, two_ways(first))
    run(world, data_dir, two_ways(first, "new"))
    world.bad = {}
    for names in ([first], ["one", "two", "new"], ["one", "two", "new"]):
        replayed(world, data_dir, two_ways(*names))
        run(world, data_dir, two_ways(*names))
    assert ns(world, "one") == ns(world, "two") == ns(world, "new") == list(range(40))
    assert letters_in(data_dir) == []


def test_what_was_mended_while_a_replay_lay_half_done_does_not_come_twice(world: Flawed, data_dir: Path) -> None:
    """A letter got further and failed there; the next replay sends it again, and this time it passes."""
    stages = [source(), transform("a", "fussy"), transform("b", "fussy"), sink("one"), sink("two", commit_batches=99)]
    pipe = pipeline(stages, [("in", "a"), ("a", "b"), ("b", "one"), ("b", "two")])
    world.bad = {"a": set(range(8))}
    run(world, data_dir, pipe)
    world.bad = {"b": {0, 1}}
    world.sink_faults = {("default/p", "two"): 0}
    replayed(world, data_dir, pipe)
    assert {stored.letter.key.stage for stored in letters_in(data_dir)} == {"a", "b"}
    world.bad = {}
    for _ in range(2):
        replayed(world, data_dir, pipe)
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))
    assert letters_in(data_dir) == []


def test_a_replay_goes_on_although_the_letter_a_sink_got_to_failed_again(world: Flawed, data_dir: Path) -> None:
    """The last letter of a batch is the one that fails in it; one sink has committed that batch, the other not."""
    world.tables["t"] = numbered(2_500)
    world.bad = {"in": set(range(1_200))}
    run(world, data_dir, forked())
    world.bad = {"a": {999}}
    world.sink_faults = {("default/p", "two"): 1_100}
    report = replayed(world, data_dir, forked())
    assert report is not None
    assert "disk full" in str(report.error)
    assert len(ns(world, "one")) > len(ns(world, "two"))
    world.bad = {}
    for _ in range(2):
        report = replayed(world, data_dir, forked())
        assert report is not None
        assert report.error is None
    assert ns(world, "one") == ns(world, "two") == list(range(2_500))
    assert letters_in(data_dir) == []


def test_letters_of_a_stage_that_is_gone_stay_also_when_they_were_queued(world: Flawed, data_dir: Path) -> None:
    sinks = [sink("one"), sink("two")]
    whole = pipeline(
        [source(), transform("a", "fussy"), transform("b", "fussy"), *sinks],
        [("in", "a"), ("a", "one"), ("in", "b"), ("b", "two")],
    )
    less = pipeline([source(), transform("b", "fussy"), *sinks], [("in", "one"), ("in", "b"), ("b", "two")])
    world.bad = {"a": {1, 2}, "b": {3, 4}}
    run(world, data_dir, whole)
    world.bad = {}
    world.sink_faults = {("default/p", "one"): 0}
    replayed(world, data_dir, whole, Selection(stage="a"))
    assert [stored.letter.key.stage for stored in letters_in(data_dir) if stored.state == "queued"] == ["a", "a"]
    report = replayed(world, data_dir, less)
    assert report is not None
    assert counts(report) == (2, 0, 0, 0)
    assert report.absent == {"a": 2}
    assert len(letters_in(data_dir)) == 2, "settling the others' numbers settled none of these"
    replayed(world, data_dir, whole)
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))


def test_sequence_numbers_are_above_what_fences_hold_although_the_letters_were_moved_away(
    world: Flawed, data_dir: Path
) -> None:
    world.bad = {"a": set(range(8))}
    run(world, data_dir, forked())
    world.bad = {}
    replayed(world, data_dir, forked())
    (data_dir / "dead-letters").rename(data_dir / "away")
    world.tables["t"] = numbered(ROWS + 4)
    world.bad = {"a": {ROWS, ROWS + 1}}
    run(world, data_dir, forked())
    world.bad = {}
    replayed(world, data_dir, forked())
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS + 4))


def test_a_record_that_was_edited_into_several_or_none_is_refused(world: Flawed, data_dir: Path) -> None:
    world.bad = {"in": {1}}
    run(world, data_dir, forked())
    world.bad, empty = {}, b"[]"
    with opened(data_dir) as store:
        store.edit(1, raw=empty)
    report = replayed(world, data_dir, forked())
    assert report is not None
    assert counts(report) == (0, 1, 0, 0)
    (left,) = letters_in(data_dir)
    assert (left.letter.code, left.letter.raw) == ("MALFORMED_RECORD", empty)


def test_no_letter_passes_those_that_are_on_their_way_and_have_to_wait(world: Flawed, data_dir: Path) -> None:
    """Else a fence would cover numbers of one stage that were not sent."""
    world.tables["t"] = numbered(12)
    world.bad = {"a": {0, 1}}
    run(world, data_dir, two_ways("one", "two"))
    world.bad = {}
    world.sink_faults = {("default/p", "two"): 0}
    replayed(world, data_dir, two_ways("one", "two"))
    world.tables["t"] = numbered(20)
    world.bad = {"a": {15}}
    world.sink_faults = {}
    run(world, data_dir, two_ways("one"))
    world.bad = {}
    report = replayed(world, data_dir, two_ways("one"))
    assert report is not None
    assert counts(report) == (0, 0, 0, 0)
    assert (report.absent, report.behind) == ({"two": 2}, 1)
    for _ in range(2):
        replayed(world, data_dir, two_ways("one", "two"))
        run(world, data_dir, two_ways("one", "two"))
    assert ns(world, "one") == ns(world, "two") == list(range(20))
