"""A letter that a sink has not passed stays until its record was read again and has arrived, whatever happens between.

Its record may be gone: the file was archived, the beginning of a partition has moved on, a journal was lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from conveyord.core.errors import Refused, Retryable, StorageFull
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine.rereading import Rereading
from conveyord.storage.dead_letters.store import DeadLetterStore
from tests.engine.graph_rig import (
    RECORD_BYTES,
    SCHEMA,
    RigRegistry,
    letters_in,
    line,
    numbered,
    pipeline,
    sink,
    source,
    stage,
    transform,
)
from tests.engine.replay_rig import ROWS, Flawed, Readable, counts, replayed, run
from tests.storage.dead_letters_rig import opened

ALL = list(range(ROWS))


class Shortened(Flawed):
    """A world whose partitions may have lost their first records. Where one begins is `beginning`."""

    beginning = 0
    tells_gap = False

    def registry(self) -> RigRegistry:
        rig = super().registry()
        return RigRegistry(rig.by_name, {**rig.own, "source.short": type("Short", (Short,), {"world": self})})


class Short(Readable):
    """Begins where its records begin, and says of those before, which a sink lacks, that they are lost."""

    world: ClassVar[Shortened]

    async def run(self, out: Any, *, fences: tuple[Positions, ...], drain: Any) -> None:
        partition, begins_at = Partition(self.context.stage, "p0"), self.world.beginning * RECORD_BYTES
        held = [fence[partition] for fence in fences if partition in fence]
        at = min((position.offset for position in held), default=0 if self.world.tells_gap else begins_at)
        if at < begins_at:
            nothing, gap = pa.RecordBatch.from_pylist([], SCHEMA), Span(partition, at, begins_at)
            await out.send(nothing, (gap,), Tally(read=1, skipped=1), raw_bytes=0, lost=True)
        begun = Positions({partition: gap_end(begins_at)})
        behind = tuple(fence if fence.get(partition, gap_end(0)).offset >= begins_at else begun for fence in fences)
        await super().run(out, fences=behind, drain=drain)


def gap_end(offset: int) -> Any:
    return Span(Partition("", ""), 0, offset).position


@pytest.fixture
def world() -> Shortened:
    return Shortened({"t": numbered(ROWS)})


def pipe(*sinks: str, name: str = "p") -> Pipeline:
    stages = [stage("in", "source", "short"), transform("a", "fussy"), *(sink(one) for one in sinks or ("one",))]
    return pipeline(stages, [("in", "a"), *(("a", one) for one in sinks or ("one",))], name=name)


def ns(world: Flawed, name: str = "one", pipe: str = "default/p") -> list[int]:
    return sorted(row["n"] for row in world.kept(pipe, name).rows)


def failed(data_dir: Path) -> list[int]:
    return sorted(stored.letter.key.offset // RECORD_BYTES for stored in letters_in(data_dir))


def emptied_after_a_run(world: Flawed, data_dir: Path, flaws: dict[str, set[Any]]) -> None:
    """Letters are there, and the table that has put their records behind it was dropped."""
    world.bad = flaws
    run(world, data_dir, pipe())
    world.bad = {}
    world.sinks.clear()


@pytest.mark.parametrize("where", ["in", "a"])
def test_a_letter_stays_if_its_source_has_the_record_no_more(world: Shortened, data_dir: Path, where: str) -> None:
    emptied_after_a_run(world, data_dir, {where: {1, 5}})
    records, world.tables["t"] = world.tables["t"], []  # the file was archived
    with capture_logs() as logs:
        run(world, data_dir, pipe())
    assert [(one["letters"], one["pipeline"]) for one in logs if "were not read again" in one["event"]] == [
        (2, "default/p")
    ]
    assert failed(data_dir) == [1, 5]
    report = replayed(world, data_dir, pipe())
    assert report is not None
    assert counts(report) == (0, 0, 2, 0), "the records may come back, and must not come twice"
    world.tables["t"] = records
    run(world, data_dir, pipe())
    assert (ns(world), failed(data_dir)) == (ALL, [])


@pytest.mark.parametrize("tells_gap", [True, False])
def test_letters_from_before_the_beginning_of_a_partition_are_replayed_once(
    world: Shortened, data_dir: Path, tells_gap: bool
) -> None:
    emptied_after_a_run(world, data_dir, {"a": {1, 5}})
    world.beginning, world.tells_gap = 4, tells_gap
    run(world, data_dir, pipe())
    assert (ns(world), failed(data_dir)) == (ALL[4:], [1]), "record 5 was read again and passed, 1 is gone"
    report = replayed(world, data_dir, pipe())
    assert report is not None
    assert counts(report) == (1, 0, 0, 0)
    assert (ns(world), failed(data_dir)) == ([1, *ALL[4:]], [])


def test_a_run_that_is_killed_after_reading_a_record_again_leaves_its_letter(world: Shortened, data_dir: Path) -> None:
    emptied_after_a_run(world, data_dir, {"a": {1, 5}})
    world.sink_faults = {("default/p", "one"): 0}
    run(world, data_dir, pipe())
    assert (ns(world), failed(data_dir)) == ([], [1, 5])
    with (
        opened(data_dir) as store,
        pytest.raises(Refused, match="reading again when it ended early.* run the pipeline"),
    ):
        store.edit(1, row=b"perhaps in vain")
    world.tables["t"] = []
    run(world, data_dir, pipe())
    assert failed(data_dir) == [1, 5]
    with opened(data_dir) as store:
        store.edit(1, row=letters_row(store.get(1)))


def letters_row(stored: Any) -> bytes:
    assert isinstance(stored.letter.row, bytes)
    return stored.letter.row


@pytest.mark.parametrize("next_is", ["run", "replay"])
def test_what_arrived_in_a_run_that_then_failed_comes_no_second_time(
    world: Shortened, data_dir: Path, next_is: str
) -> None:
    """The first sink has its rows, and nobody was left to take the letters from it."""
    world.bad = {"a": {1, 5}}
    run(world, data_dir, pipe("one", "two"))
    world.bad = {}
    world.sinks.clear()
    world.sink_faults = {("default/p", "two"): ROWS - 1}
    run(world, data_dir, pipe("one", "two"))
    assert 1 in ns(world)
    for _ in range(2):
        if next_is == "run":
            run(world, data_dir, pipe("one", "two"))
        replayed(world, data_dir, pipe("one", "two"))
    run(world, data_dir, pipe("one", "two"))
    assert ns(world, "one") == ns(world, "two") == ALL
    assert letters_in(data_dir) == []


def test_what_fails_again_keeps_its_letter_and_its_id(world: Shortened, data_dir: Path) -> None:
    emptied_after_a_run(world, data_dir, {"in": {1}, "a": {5}})
    before = {stored.id: stored.letter.key for stored in letters_in(data_dir)}
    world.bad = {"in": {1}, "a": {5, 6}}
    run(world, data_dir, pipe())
    after = {stored.id: stored.letter for stored in letters_in(data_dir)}
    assert {number: letter.key for number, letter in after.items() if number in before} == before
    assert [letter.attempts for letter in after.values()] == [2, 2, 1]
    world.bad = {}
    replayed(world, data_dir, pipe())
    assert (ns(world), letters_in(data_dir)) == (ALL, [])


def test_a_row_whose_place_another_takes_stays_until_what_became_of_it_has_arrived(
    world: Shortened, data_dir: Path
) -> None:
    """Rows of a record are numbered in another way once a stage before drops some of them."""
    stages = [source(), transform("s", "split"), transform("a", "fussy"), transform("b", "fussy"), sink("one")]
    world.bad = {"a": {(1, 0)}, "b": {(1, 1)}}
    run(world, data_dir, line(*stages))
    world.sinks.clear()
    world.bad, world.sink_faults = {"b": {(1, 0)}}, {("default/p", "one"): 0}
    run(world, data_dir, line(*stages))
    world.tables["t"] = []
    run(world, data_dir, line(*stages))
    rows = {row_of_letter(stored) for stored in letters_in(data_dir)}
    assert rows >= {(1, 0), (1, 1)}
    world.tables["t"], world.bad = numbered(ROWS), {}
    run(world, data_dir, line(*stages))
    assert letters_in(data_dir) == []


def row_of_letter(stored: Any) -> tuple[int, int]:
    row = pa.ipc.open_stream(letters_row(stored)).read_next_batch().to_pylist()[0]
    return row["n"], row["i"]


def test_letters_that_were_on_their_way_to_a_dropped_table_hold_up_no_others(world: Shortened, data_dir: Path) -> None:
    world.bad = {"a": {1, 5}}
    run(world, data_dir, pipe())
    world.bad, world.sink_faults = {}, {("default/p", "one"): 0}
    replayed(world, data_dir, pipe())
    assert {stored.state for stored in letters_in(data_dir)} == {"queued"}
    world.sinks.clear()
    world.sink_faults = {}
    world.tables["t"], world.beginning = numbered(ROWS + 4), ROWS
    world.bad = {"a": {ROWS + 1}}
    run(world, data_dir, pipe())
    world.bad = {}
    replayed(world, data_dir, pipe())
    assert (ns(world), failed(data_dir)) == ([1, 5, *range(ROWS, ROWS + 4)], [])


def test_a_run_does_not_fail_for_letters_that_it_cannot_let_go(
    world: Shortened, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied_after_a_run(world, data_dir, {"a": {1, 5}})

    def full(_: Rereading) -> None:
        raise StorageFull("no room at all")

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(Rereading, "end", full)
        (summary,) = run(world, data_dir, pipe())
    assert summary.status == "succeeded"
    assert "no room at all" in [one["reason"] for one in logs if "listed still" in one["event"]]
    replayed(world, data_dir, pipe())
    assert (ns(world), failed(data_dir)) == (ALL, [])


def test_what_could_not_be_noted_is_noted_when_the_source_tries_again(
    world: Shortened, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied_after_a_run(world, data_dir, {"a": {1, 5}})
    real, refusals = DeadLetterStore.come_again, [Retryable("database is locked")]

    def come_again(store: DeadLetterStore, claims: Any) -> None:
        if claims and refusals:
            raise refusals.pop()
        real(store, claims)

    monkeypatch.setattr(DeadLetterStore, "come_again", come_again)
    run(world, data_dir, pipe())
    assert refusals == []
    assert (ns(world), failed(data_dir)) == (ALL, [])


def test_only_the_letters_of_pipelines_that_lack_a_record_wait_for_it(world: Shortened, data_dir: Path) -> None:
    world.bad = {"a": {1}}
    run(world, data_dir, pipe(), pipe(name="q"))
    world.bad = {}
    del world.sinks["default/p", "one"]
    run(world, data_dir, pipe(), pipe(name="q"))
    assert [stored.letter.key.pipeline for stored in letters_in(data_dir)] == ["default/q"]
    replayed(world, data_dir, pipe(name="q"))
    assert ns(world) == ns(world, pipe="default/q") == ALL


def test_pipelines_that_share_a_source_each_let_go_of_what_was_read_again(world: Shortened, data_dir: Path) -> None:
    """Found in review: the records of the second were not in order behind those of the first."""
    source, picky = stage("in", "source", "short", batch_rows=3), stage("two", "sink", "picky", place="two")
    both = (
        pipeline([source, transform("a", "fussy"), sink("one")], [("in", "a"), ("a", "one")]),
        pipeline([source, picky], [("in", "two")], name="q"),
    )
    world.bad = {"a": {1, 2, 9}, "two": {2}}
    run(world, data_dir, *both)
    world.bad = {}
    world.sinks.clear()
    run(world, data_dir, *both)
    assert failed(data_dir) == []
    for one in both:
        replayed(world, data_dir, one)
    assert ns(world) == ns(world, "two", "default/q") == ALL
