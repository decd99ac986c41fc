"""Dead letters in a run: on disk before any position passes them, one per failure, and never a reason to hang."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
import trio

from conveyord.core.errors import BatchError, Retryable
from conveyord.core.flow.positions import Partition
from conveyord.core.pipeline.graph import DeadLetterPolicy, Edge
from conveyord.engine.contracts import Rejected
from conveyord.engine.dead_lettering import LETTERS_AT_A_TIME, LetterBox, StageLetters, row_bytes, row_of
from conveyord.engine.origin import Place, RecordRef
from conveyord.storage.dead_letters.letters import Selection
from conveyord.storage.dead_letters.reader import DeadLetterReader
from conveyord.storage.dead_letters.store import DeadLetterStore
from tests.engine.graph_rig import RETRY, World, line, numbered, pipeline, run_now, sink, source, transform
from tests.storage.dead_letters_rig import opened

BRITTLE = transform("a", "brittle", poison=[5])


def arrived(world: World, name: str = "out", pipe: str = "default/p") -> list[int]:
    return [row["n"] for row in world.kept(pipe, name).rows]


def test_a_record_that_cannot_be_read_is_a_letter_without_a_row(tmp_path: Path) -> None:
    table = numbered(20)
    table[7]["bad"] = True
    world = World({"t": table})
    outcome = run_now(world, line(source(), BRITTLE, sink()), tmp_path)
    letters = {
        stored.letter.key.stage: stored.letter for stored in outcome.letters_of() if stored.letter.key.offset < 100
    }
    assert letters["in"].row is None
    assert letters["in"].raw is not None
    assert json.loads(letters["in"].raw)["n"] == 7
    assert letters["in"].code == "MALFORMED_RECORD"
    assert letters["a"].row is not None
    assert arrived(world) == [n for n in range(20) if n not in (5, 7, 15)]


@pytest.mark.parametrize("seed", range(8))
def test_no_position_passes_a_record_whose_letter_is_not_on_disk(tmp_path: Path, seed: int) -> None:
    world = World({"t": numbered(40)}, delays=Random(seed))
    pipe = line(source(batch_rows=3, partitions=2), BRITTLE, transform("b", "slow"), sink(commit_batches=2))
    checked, reader = 0, DeadLetterReader(tmp_path)

    def check() -> None:
        nonlocal checked
        positions = {partition: at.offset for partition, at in world.kept("default/p", "out").positions.items()}
        on_disk = {(letter.letter.key.partition, letter.letter.key.offset) for letter in reader.select(payloads=False)}
        for index, row in enumerate(world.tables["t"]):
            for partition, at in positions.items():
                if row["v"] == 5 and partition.name == f"p{index % 2}" and index // 2 * 10 < at:
                    assert (partition, index // 2 * 10) in on_disk
                    checked += 1

    world.watchers.append(check)
    assert run_now(world, pipe, tmp_path).failed() == []
    assert checked


def test_what_fails_again_after_a_restart_replaces_its_letter(tmp_path: Path) -> None:
    world = World({"t": numbered(40)}, sink_faults={("default/p", "out"): 3})
    pipe = line(source(), BRITTLE, sink(commit_batches=99))
    first = run_now(world, pipe, tmp_path)
    assert first.failed() == [("out", "disk full")]
    second = run_now(world, pipe, tmp_path)
    assert second.failed() == []
    assert [stored.letter.key.offset for stored in second.letters_of()] == [50, 150, 250, 350]
    assert arrived(world) == [n for n in range(40) if n % 10 != 5]


def test_letters_of_records_that_are_read_again_are_forgotten_and_others_stay(tmp_path: Path) -> None:
    """What fails in a run that commits nothing may turn out well the next time."""
    world = World({"t": numbered(40)}, sink_faults={("default/p", "out"): 12})
    first = run_now(world, line(source(batch_rows=4), BRITTLE, sink(commit_batches=2)), tmp_path)
    assert first.failed() == [("out", "disk full")]
    mended = transform("a", "passthrough")
    second = run_now(world, line(source(batch_rows=4), mended, sink(commit_batches=2)), tmp_path)
    (passed,) = {stored.letter.key.offset for stored in second.letters_of()}
    assert passed == 50
    assert sorted(arrived(world)) == [n for n in range(40) if n != 5]


def test_pipelines_that_share_the_stage_have_a_letter_each(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    outcome = run_now(world, [line(source(), BRITTLE, sink(), name=name) for name in ("one", "two")], tmp_path)
    assert world.reads == {"in": 1}
    for name in ("default/one", "default/two"):
        assert [stored.letter.key.offset for stored in outcome.letters_of(name)] == [50, 150]
        assert outcome.progress[name].dead_letters == 2


def test_copies_of_all_letters_reach_the_dead_letter_sink(tmp_path: Path) -> None:
    policy = DeadLetterPolicy(sink="dead", retry=RETRY)
    world = World({"t": numbered(40)}, delays=Random(0))
    pipe = pipeline([source(), BRITTLE, sink(), sink("dead")], [("in", "a"), ("a", "out")], dlq=policy)
    for _ in range(2):
        assert run_now(world, pipe, tmp_path).failed() == []
    copies = world.kept("default/p", "dead").rows
    assert [(copy["stage"], copy["offset"], json.loads(copy["row"])["v"]) for copy in copies] == [
        ("a", offset, 5) for offset in (50, 150, 250, 350)
    ]


def test_a_full_store_stops_the_stage_and_nothing_is_lost(tmp_path: Path) -> None:
    world = World({"t": numbered(400)})
    pipe = line(source(), BRITTLE, sink())
    outcome = run_now(world, pipe, tmp_path, letter_bytes=8_000)
    ((stage, error),) = outcome.failed()
    assert stage == "a"
    assert "dead" in error
    assert arrived(world) == [n for n in range(len(arrived(world)) + len(outcome.letters)) if n % 10 != 5]
    assert run_now(world, pipe, tmp_path).failed() == []
    assert arrived(world) == [n for n in range(400) if n % 10 != 5]


async def test_letters_that_share_a_key_are_all_kept_however_many_come_between_them(tmp_path: Path) -> None:
    """A batch's letters went to the store by thousands, and the second of a key took the place of the first."""
    with opened(tmp_path) as store:
        box = LetterBox(store, trio.CapacityLimiter(1))
        letters = StageLetters(box, {"default/p": "a"}, {"default/p": {}})
        data = pa.record_batch({"n": range(2 * LETTERS_AT_A_TIME + 7)})
        rejected = [
            Rejected(
                Place(RecordRef(Partition("in", "f"), n % (2 * LETTERS_AT_A_TIME))), BatchError("x"), data.slice(n, 1)
            )
            for n in range(data.num_rows)
        ]
        await letters.put(rejected)
        found = [row_of(stored.letter.row or b"").to_pylist()[0]["n"] for stored in store.select(Selection())]
        assert sorted(found) == list(range(data.num_rows))
        assert box.counts == {"default/p": data.num_rows}


def test_a_store_that_fails_while_an_edge_of_a_source_puts_there_fails_the_source_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source was started again in the middle of a batch, and tracked it twice: a crash."""

    def put(*_: object) -> None:
        raise Retryable("the disk is away")

    monkeypatch.setattr(DeadLetterStore, "put", put)
    world = World({"t": numbered(20)})
    pipe = pipeline([source(), sink()], [Edge("in", "out", when="10 / v > 2")])
    assert run_now(world, pipe, tmp_path).failed() == [("in", "the disk is away")]
    assert world.reads["in"] == 1


def test_the_bytes_of_a_row_do_not_depend_on_its_neighbours() -> None:
    # A letter that comes again after a restart, from a batch that was cut otherwise, must be told as the same.
    one = pa.record_batch(
        {"b": [True, False, True], "s": ["a", None, "c" * 90], "o": [{"x": True}, None, {"x": False}]}
    )
    other = pa.record_batch({"b": [True, True, False], "s": ["a", "b", None], "o": [{"x": True}, {"x": True}, None]})
    assert row_bytes(one.take(pa.array([0]))) == row_bytes(other.slice(0, 1))
    assert b"ccc" not in row_bytes(one.slice(0, 1))
    assert row_bytes(one.slice(0, 1)) == row_bytes(other.slice(0, 1))
    assert row_of(row_bytes(one.slice(1, 1))).to_pylist() == one.slice(1, 1).to_pylist()


@pytest.mark.parametrize("day", [20_000_000, -20_000_000])
def test_a_row_keeps_times_in_years_that_python_does_not_know(day: int) -> None:
    days = pa.array([0, day], pa.int32()).cast(pa.date32())
    times = days.cast(pa.timestamp("s", "UTC"))
    lists = pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([times, days], names=["t", "d"]))
    rows = pa.record_batch({"d": days, "t": times, "l": lists, "n": [1, 2]})
    kept = row_of(row_bytes(rows.slice(1, 1)))
    assert kept.equals(rows.slice(1, 1))
    assert row_bytes(rows.take(pa.array([1]))) == row_bytes(rows.slice(1, 1)) == row_bytes(kept)
