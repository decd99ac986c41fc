"""Whatever is cut short, mended, emptied or changed in between, every sink has every row once in the end.

A history is a list of acts on one data directory: runs and replays that are killed or drained anywhere, of a
pipeline whose stages and sinks come and go, while other rows fail each time, and letters are edited in between, or
damaged, and their files restored in the end. The source may be away meanwhile; so no act may lose what a sink or a
letter has, as if it were back in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.core.pipeline.graph import DeadLetterPolicy, Edge, Pipeline, Stage
from conveyord.engine.dead_lettering import row_of
from conveyord.storage.dead_letters.letters import Selection
from tests.engine.graph_rig import DLQ, RECORD_BYTES, letters_in, numbered, pipeline, source, stage, transform
from tests.engine.replay_rig import (
    COPIES,
    EVERY_ROW,
    ROWS,
    Bytes,
    Flawed,
    arrived,
    bytes_of,
    counts,
    edited,
    flip,
    replayed,
    run,
)

STAGES = (
    source(batch_rows=3),
    transform("a", "fussy"),
    transform("split", "split"),
    transform("b", "fussy"),
    transform("c", "fussy"),
    transform("e", "fussy"),
    transform("join", "slow"),
    transform("f", "fussy"),
    transform("d", "fussy"),
    transform("turn", "reverse"),
    transform("g", "fussy"),
)
WAYS = (
    Edge("in", "a"),
    Edge("a", "split"),
    Edge("split", "b"),
    Edge("b", "one"),
    Edge("b", "two", when="i = 0"),
    Edge("b", "six", otherwise=True),
    Edge("b", "five"),
    Edge("b", "c"),
    Edge("b", "e"),
    Edge("c", "join"),
    Edge("e", "join"),
    Edge("join", "f"),
    Edge("f", "three"),
    Edge("in", "d"),
    Edge("d", "four"),
    Edge("d", "turn"),
    Edge("turn", "g"),
    Edge("g", "seven"),
)
"""Rows become several, branches are conditional, two come together and fail behind that, one tells no rows apart."""

SPILLS = (None, ("b", "one"), ("in", "d"), ("d", "turn"))
RECORDS: Counter[Any] = Counter((n, None) for n in range(ROWS))
EXPECTED = {
    "one": Counter(EVERY_ROW),
    "two": Counter(row for row in EVERY_ROW if row[1] == 0),
    "three": Counter(EVERY_ROW * 2),
    "four": RECORDS,
    "five": Counter(EVERY_ROW),
    "six": Counter(row for row in EVERY_ROW if row[1] != 0),
    "seven": RECORDS,
}
"""What belongs into each sink. The fifth is added in the course of time, and commits most seldom."""

MOST_INVOLVED = ("three", "seven", "seven")  # behind the join, and behind what tells no rows apart
FRAIL = (0, 1, 2, 5, 6, 9, 13)
"""The records of which rows may fail: few, so that what was mended in one stage fails in another."""

COMMIT_BATCHES = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 2, "seven": 1}


@dataclass(frozen=True)
class Shape:
    """How the pipeline looks for a while.

    late: with the fifth sink. away: sinks that are left out. bypassed: stages that are left out, what led to them
    leads on. renamed: sinks that have other names, at the same places. spills: the edge that spills. copies: with
    a `dlq.sink`.
    """

    late: bool = True
    away: frozenset[str] = frozenset()
    bypassed: frozenset[str] = frozenset()
    renamed: frozenset[str] = frozenset()
    spills: tuple[str, str] | None = None
    copies: bool = False

    def pipeline(self, name: str = "p") -> Pipeline:
        out = self.away | (frozenset() if self.late else {"five"}) | ({"six"} if "two" in self.away else frozenset())
        sinks = [one for one in EXPECTED if one not in out]
        edges = self._edges(out)
        met = {end for edge in edges for end in (edge.source, edge.target)}
        stages = [one for one in STAGES if one.name in met]
        stages += [picky(self._name(one), one, commit_batches=COMMIT_BATCHES[one]) for one in sinks]
        if self.copies:
            stages.append(picky(COPIES, COPIES))
        ways = [replace(edge, target=self._name(edge.target)) for edge in edges]
        dlq = DeadLetterPolicy(sink=COPIES, max_retries=DLQ.max_retries, retry=DLQ.retry) if self.copies else DLQ
        return pipeline(stages, ways, name=name, dlq=dlq)

    def _edges(self, out: Iterable[str]) -> list[Edge]:
        """Between what is there, without ways that lead nowhere."""
        edges = [replace(way, on_slow="spill") if (way.source, way.target) == self.spills else way for way in WAYS]
        for name in sorted(self.bypassed):
            into = {edge.source for edge in edges if edge.target == name}
            leaving = [replace(edge, source=above) for above in into for edge in edges if edge.source == name]
            edges = [edge for edge in edges if name not in (edge.source, edge.target)] + leaving
        nowhere = set(out)
        while nowhere:
            edges = [edge for edge in edges if edge.target not in nowhere]
            nowhere = {edge.target for edge in edges} - {edge.source for edge in edges} - EXPECTED.keys()
        return edges

    def _name(self, one: str) -> str:
        return f"new_{one}" if one in self.renamed else one


def picky(name: str, place: str, **options: Any) -> Stage:
    return stage(name, "sink", "picky", place=place, **options)


@dataclass(frozen=True)
class Act:
    """One thing that is done, in a world that is so for as long.

    pauses, drains, seed: when and how it is cut short; see `acted`. bad: by stage or place, what fails there.
    emptied: places at which somebody makes the table anew before. archived: the source has nothing. full, room: places
    with disks onto which so many rows fit. flipped: every third letter, from this one on, is damaged before, or mended
    if it was. away, bypassed, renamed: see `Shape`. selection: what is replayed.
    """

    kind: str
    pauses: int | None = None
    drains: bool = False
    seed: int = 0
    bad: dict[str, set[Any]] = field(default_factory=dict)
    emptied: frozenset[str] = frozenset()
    archived: bool = False
    full: frozenset[str] = frozenset()
    room: int = 0
    flipped: int | None = None
    away: frozenset[str] = frozenset()
    bypassed: frozenset[str] = frozenset()
    renamed: frozenset[str] = frozenset()
    selection: Selection | None = None

    def shape(self, history: History, *, late: bool) -> Shape:
        """A sink that refuses rows keeps its name: such letters wait for it by that."""
        renamed = self.renamed - history.refusing
        return Shape(late, self.away, self.bypassed, renamed, history.spills, history.copies)


@dataclass(frozen=True)
class History:
    """What is done, one act after the other; the first is always a run, as before it there is nothing to replay.

    late_from: the number of the act from which on there is one sink more. refusing: sinks that may refuse rows.
    """

    acts: list[Act]
    late_from: int = 0
    spills: tuple[str, str] | None = None
    copies: bool = False
    refusing: frozenset[str] = frozenset()


def seldom(some: st.SearchStrategy[Any], otherwise: Any = frozenset()) -> st.SearchStrategy[Any]:
    return st.just(otherwise) | some


def few(names: Iterable[str], at_most: int) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from([*names]), max_size=at_most)


records = st.sets(st.sampled_from(FRAIL), max_size=3)
rows = st.sets(st.sampled_from([row for row in EVERY_ROW if row[0] in FRAIL]), max_size=6)
flaws = st.fixed_dictionaries(
    {
        **dict.fromkeys(["in", "a", "d", "g", "four", "seven"], records),
        **dict.fromkeys(["b", "c", "e", "f", "one", "two", "three", "five", "six"], rows),
    }
)
selections = [Selection(stage="a"), Selection(stage="b"), Selection(ids=(1, 2, 3, 5, 8, 13, 21, 34, 55, 89))]
acts = st.builds(
    Act,
    kind=st.sampled_from(["run", "replay", "replay", "replay", "run both", "replay other", "edit"]),
    pauses=st.none() | st.integers(0, 80),
    drains=st.booleans(),
    seed=st.integers(0, 3),
    bad=flaws,
    emptied=seldom(few(EXPECTED, 2)),
    archived=seldom(st.booleans(), False),
    full=seldom(few([*EXPECTED, *MOST_INVOLVED], 4)),
    room=st.sampled_from([0, 0, 0, 1, 2, 5, 12]),
    flipped=seldom(st.sampled_from([None, 0, 1, 2]), None),
    away=seldom(few(["one", "two", "six", "four", "seven", "three"], 2)),
    bypassed=seldom(few(["a", "b", "c", "e", "f", "d", "turn", "g"], 1)),
    renamed=seldom(few(EXPECTED, 3)),
    selection=seldom(st.sampled_from(selections), None),
)
histories = st.builds(
    History,
    acts=st.lists(acts, min_size=2, max_size=5),
    late_from=st.integers(0, 5),
    spills=st.sampled_from(SPILLS),
    copies=st.booleans(),
    refusing=few(EXPECTED, 4),
)


@settings(max_examples=12)
@given(histories)
def test_whatever_is_cut_short_and_mended_every_row_arrives_once(history: History) -> None:
    relive(history)


@pytest.mark.check
@pytest.mark.timeout(900)
@settings(max_examples=80)
@given(histories)
def test_whatever_is_cut_short_and_mended_every_row_arrives_once_often(history: History) -> None:
    relive(history)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@settings(max_examples=3_000)
@given(histories)
def test_whatever_is_cut_short_and_mended_every_row_arrives_once_for_hours(history: History) -> None:
    relive(history)


@st.composite
def damaged_on_their_way(draw: st.DrawFn) -> History:
    """A replay is cut short when some letters have failed further on, and in the next one some cannot be sent."""
    some = draw(st.sets(st.sampled_from(FRAIL), min_size=2))
    again = draw(st.sets(st.sampled_from(sorted(some)), min_size=1, max_size=len(some) - 1))
    later = draw(st.sets(st.sampled_from(["b", "c", "e", "f", "g"]), min_size=1))
    begun = Act("replay", bad=dict.fromkeys(later, again), full=draw(few([*EXPECTED, *MOST_INVOLVED], 7)))
    failed = Act("run", bad={draw(st.sampled_from(["in", "a", "d"])): some})
    return History([failed, begun, *draw(st.lists(flipping, min_size=2, max_size=3))])


flipping = st.builds(Act, kind=st.sampled_from(["replay", "replay", "edit"]), flipped=st.sampled_from([0, 1, 2]))


@pytest.mark.check
@pytest.mark.timeout(900)
@settings(max_examples=40)
@given(damaged_on_their_way())
def test_what_is_damaged_on_its_way_and_mended_arrives_once(history: History) -> None:
    relive(history)


def relive(history: History) -> None:
    """Do one thing after the other, then mend everything, and see that all is where it belongs."""
    world = Flawed({"t": numbered(ROWS)})
    with TemporaryDirectory() as home:
        data_dir, pipes, late = Path(home), {"p"}, False
        damaged: Bytes = frozenset()
        for number, act in enumerate([replace(history.acts[0], kind="run"), *history.acts[1:]]):
            late = number >= history.late_from
            for place in act.emptied:
                world.sinks.pop(("default/p", place), None)
            accepting = EXPECTED.keys() - history.refusing
            world.bad = {where: bad for where, bad in act.bad.items() if where not in accepting}
            world.sink_faults = {("default/p", place): act.room for place in act.full}
            pipes |= {"q"} if act.kind == "run both" else set()
            some = bytes_of(data_dir, lambda stored, third=act.flipped: stored.id % 3 == third)
            flip(some)
            damaged ^= some
            world.tables["t"] = [] if act.archived else numbered(ROWS)
            had = accounted_for(world, data_dir, surely=True)
            done(act, act.shape(history, late=late), world, data_dir, value=100 + number)
            assert had <= accounted_for(world, data_dir), "a letter went, and what it stood for is nowhere"
            assert [came_twice(world, name) for name in pipes] == [{}] * len(pipes)
            assert all(stored.letter.key.variant <= 0 for stored in letters_in(data_dir)), "rows shared a key"
        flip(damaged)
        world.bad, world.sink_faults, world.tables["t"] = {}, {}, numbered(ROWS)
        for name in sorted(pipes):
            settled(world, data_dir, Shape(late, spills=history.spills, copies=history.copies and name == "p"), name)
        assert letters_in(data_dir) == []
        copied = [row["id"] for row in world.kept("default/p", COPIES).rows]
        assert copied == sorted(set(copied)), "a letter was copied twice"


def done(act: Act, shape: Shape, world: Flawed, data_dir: Path, *, value: int) -> None:
    """Do what an act says to the pipeline `p` of that shape. `q`, of which the other kinds tell, is always whole."""
    other = Shape(shape.late, spills=shape.spills).pipeline("q")
    cut: dict[str, Any] = {"pauses": act.pauses, "drains": act.drains, "seed": act.seed}
    match act.kind:
        case "run":
            run(world, data_dir, shape.pipeline(), **cut)
        case "run both":
            run(world, data_dir, shape.pipeline(), other, **cut)
        case "replay":
            replayed(world, data_dir, shape.pipeline(), act.selection, **cut)
        case "replay other":
            replayed(world, data_dir, other, act.selection, **cut)
        case "edit":
            edited(data_dir, value, lambda stored: stored.id % 2 == value % 2)


def accounted_for(world: Flawed, data_dir: Path, *, surely: bool = False) -> set[tuple[str, str, Any]]:
    """Which rows are in sinks, or would come from letters that they lack: by pipeline, sink and row.

    surely: without those of letters that are damaged, or lie behind what does not tell rows apart, or on disk: they
    are known by the batch of their row, so that they go with whatever record comes first of it.
    """
    found = {
        (pipe, place, (row["n"], row.get("i")))
        for (pipe, place), kept in world.sinks.items()
        if place != COPIES
        for row in kept.rows
    }
    for stored in letters_in(data_dir):
        letter, at = stored.letter, stored.letter.key
        n, i = at.offset // RECORD_BYTES, None
        if letter.row is not None:
            (row,) = row_of(letter.row).to_pylist()
            n, i = row["n"], row.get("i")
        if surely and letter.raw is None:
            continue
        for place in (sink.removeprefix("place ") for sink in stored.claims):
            rows = [one for one in EXPECTED[place] if one[0] == n and (i is None or one[1] in (i, None))]
            found |= {(at.pipeline, place, one) for one in rows}
    return found


def came_twice(world: Flawed, name: str) -> dict[str, Counter[Any]]:
    """Rows beyond those that belong into each sink of a pipeline."""
    found = arrived(world, f"default/{name}")
    return {sink: more for sink, rows in found.items() if (more := rows - EXPECTED[sink])}


def settled(world: Flawed, data_dir: Path, shape: Shape, name: str) -> None:
    """Let everything end in a world without flaws, and assert that every row is where it belongs, once."""
    pipe = shape.pipeline(name)
    replayed(world, data_dir, pipe)
    assert all(summary.error is None for summary in run(world, data_dir, pipe))
    report = replayed(world, data_dir, pipe)
    assert report is not None
    assert (counts(report)[1:], report.absent) == ((0, 0, 0), {})
    expected = {sink: rows for sink, rows in EXPECTED.items() if shape.late or sink != "five"}
    found = arrived(world, f"default/{name}")
    assert {sink: rows for sink, rows in found.items() if sink in expected or rows} == expected
