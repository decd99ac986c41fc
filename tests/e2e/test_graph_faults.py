"""Graphs on which something around them fails: one branch, the dead letters, the spill. The next run is exact."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.graph_rig import RECORDS, GraphJob, copies, sink
from tests.e2e.harness import conveyord, lines
from tests.e2e.test_disk_faults import fill, mount, mounted

OFTEN = {"rows": 500, "every": "0.2s"}
COUNT = 8_000
BAD = [*range(5, COUNT, 100)]
GOOD = [number for number in range(COUNT) if number % 100 != 5]
LONG = "x" * 20_000


@pytest.fixture
def branches(tmp_path: Path) -> GraphJob:
    """Two sinks that commit often."""
    sinks = [sink("one", commit=OFTEN), sink("two", commit=OFTEN)]
    job = GraphJob(
        tmp_path, sources=[{**RECORDS, "batch_rows": 100}], sinks=sinks, edges=[["in", "one"], ["in", "two"]]
    )
    (job.input / "a.jsonl").write_bytes(lines(range(COUNT)))
    return job


@pytest.fixture
def poisoned(tmp_path: Path) -> GraphJob:
    """Bad records, letters, and copies of them. A bad record takes twenty kilobytes."""
    job = GraphJob(tmp_path, sources=[{**RECORDS, "batch_rows": 100}], sinks=[sink("out", commit=OFTEN), sink("dead")])
    job.edges, job.dlq = [["in", "out"]], {"sink": "dead"}
    whole = lines(range(COUNT)).splitlines(keepends=True)
    for number in BAD:
        whole[number] = json.dumps({"id": number, "pad": LONG})[:-1].encode() + b"\n"
    (job.input / "a.jsonl").write_bytes(b"".join(whole))
    return job


def is_prefix(job: GraphJob, name: str, of: list[int]) -> int:
    """Assert that a table holds the first of these ids without a hole, and say how many."""
    held = job.table(name).ids()
    assert held == of[: len(held)]
    return len(held)


def has_every_letter(job: GraphJob) -> None:
    job.hold(out=GOOD)
    assert sorted(id_of(letter["raw"]) for letter in job.letters()) == BAD
    job.table("out").audit()


def id_of(raw: str | bytes) -> int:
    return int((raw if isinstance(raw, str) else raw.decode())[len('{"id": ') :].partition(",")[0])


# ------------------------------------------------------------------ one branch


@pytest.mark.check
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_branch_whose_disk_fails_is_named_and_the_other_keeps_what_it_has(branches: GraphJob, fault: str) -> None:
    job, place = branches, branches.data_dir / "warehouse" / "ns" / "two"
    with mounted("tmpfs" if fault == "full" else "ext4", job.home / "image", place):
        if fault == "full":
            ballast = fill(place, leave_bytes=0)
        else:
            mount("-o", "remount,ro", place)
        ended = job.run()
        ended.failed("stage two: .*(No space left|is full|[Rr]ead-only)", "free space|writable")
        assert ended.summary["error"]["stage"] == "two"
        is_prefix(job, "one", [*range(COUNT)])
        assert job.table("two").snapshot_id() is None
        if fault == "full":
            ballast.unlink()
        else:
            mount("-o", "remount,rw", place)
        job.run().succeeded()
        job.hold(one=range(COUNT), two=range(COUNT))
        for name in ("one", "two"):
            job.table(name).audit()
            assert not job.table(name).orphans()


def test_a_table_that_a_branch_may_not_write_is_named_and_nothing_is_doubled_later(branches: GraphJob) -> None:
    job = branches
    job.sinks[1]["catalog"] = "gone"
    job.settings = '[catalogs.gone]\ntype = "sql"\nuri = "sqlite:////nowhere/catalog.db"\n'
    ended = job.run()
    ended.failed("two|'gone'", "/nowhere|unable to open")
    assert job.table("one").snapshot_id() is None
    job.sinks[1]["catalog"] = "lake"
    job.run().succeeded()
    job.hold(one=range(COUNT), two=range(COUNT))


# ------------------------------------------------------------------ dead letters


def test_letters_beyond_the_budget_stop_the_run_and_a_larger_one_goes_on(poisoned: GraphJob) -> None:
    job = poisoned
    job.settings = '[dead_letters]\nbudget = "1MiB"\n'
    job.run().failed("stage in: ", "do not fit into dead_letters.budget, 1.00 MiB", "conveyord dlq purge")
    held = is_prefix(job, "out", GOOD)
    assert held < len(GOOD)
    job.run().failed("dead_letters.budget")
    assert is_prefix(job, "out", GOOD) >= held
    job.settings = '[dead_letters]\nbudget = "10MiB"\n'
    job.run().succeeded()
    has_every_letter(job)
    assert sorted(id_of(row["raw"]) for row in copies(job.table("dead"))) == BAD


@pytest.mark.check
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_letters_on_a_disk_that_fails_stop_the_run_and_the_next_goes_on(poisoned: GraphJob, fault: str) -> None:
    job, place = poisoned, poisoned.data_dir / "dead-letters"
    with mounted("tmpfs" if fault == "full" else "ext4", job.home / "image", place):
        if fault == "full":
            ballast = fill(place, leave_bytes=600_000)
        else:
            mount("-o", "remount,ro", place)
        job.run().failed("dead-letters|dead letters", "No space left|full|[Rr]ead-only|writable")
        assert is_prefix(job, "out", GOOD) < len(GOOD)
        if fault == "full":
            ballast.unlink()
        else:
            mount("-o", "remount,rw", place)
        job.run().succeeded()
        has_every_letter(job)
        assert sorted(id_of(row["raw"]) for row in copies(job.table("dead"))) == BAD


def test_a_damaged_index_of_letters_is_named_and_moved_away_nothing_more_is_lost(poisoned: GraphJob) -> None:
    job = poisoned
    (job.input / "b.jsonl").write_bytes(lines(range(COUNT, COUNT + 100)))
    job.run().succeeded()
    index = job.data_dir / "dead-letters" / "index.db"
    index.write_bytes(b"garbage" * 4000)
    (job.input / "c.jsonl").write_bytes(b'{"id": 9000, \n{"id": 9001, \n' + lines(range(9002, 9010)))
    ended = job.run()
    ended.failed(f"{index}: .*damaged", "restore the file from a backup, or move the directory .* away")
    assert ended.summary["error"]["code"] == "CORRUPT"
    shutil.move(index.parent, job.home / "away")
    assert job.run().succeeded()["dead_letters"] == 2
    job.hold(out=[*GOOD, *range(COUNT, COUNT + 100), *range(9002, 9010)])
    assert sorted(id_of(letter["raw"]) for letter in job.letters()) == [9000, 9001]
    assert sorted(id_of(row["raw"]) for row in copies(job.table("dead"))) == [*BAD, 9000, 9001]


# ------------------------------------------------------------------ spill


def cut(segment: Path) -> None:
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 100)


def flip(segment: Path) -> None:
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 4
    segment.write_bytes(content)


def spoil_ledger(segment: Path) -> None:
    for path in segment.parent.iterdir():
        if path.is_file() and path.suffix != ".seg":
            path.write_bytes(b"garbage" * 100)


def spilling(home: Path) -> GraphJob:
    """The slow branch commits every batch, the other none of them."""
    sinks = [sink("quick", commit={"rows": 10**6, "every": "1h"}), sink("slow", commit={"rows": 100})]
    job = GraphJob(home, sources=[{**RECORDS, "batch_rows": 100}], sinks=sinks)
    job.edges = [["in", "quick"], {"from": "in", "to": "slow", "on_slow": "spill"}]
    (job.input / "a.jsonl").write_bytes(lines(range(COUNT)))
    return job


def killed_with_frames(job: GraphJob) -> list[Path]:
    """The segments that a run left which was killed while its slow branch was behind."""
    running = job.start("--channel-capacity", "1")
    assert running.until(lambda: sum(path.stat().st_size for path in job.spilled()) > 20_000)
    assert running.saw("committed table=ns.slow")
    running.send(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert job.spilled()
    (listed,) = conveyord("buffer", "ls", "-o", "json", "--data-dir", job.data_dir, cwd=job.home).summary
    assert listed["edge"] == "in to slow", "docs/spill.md says so"
    job.sinks[1]["commit"] = {}  # the rest at once
    return job.spilled()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut, marks=pytest.mark.check),
        flip,
        pytest.param(Path.unlink, marks=pytest.mark.check),
        pytest.param(spoil_ledger, marks=pytest.mark.check),
    ],
    ids=["torn", "flipped", "missing", "ledger"],
)
def test_a_damaged_spill_costs_reading_again_and_nothing_else(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    job = spilling(tmp_path)
    segments = killed_with_frames(job)
    damage(segments[-1])
    job.run().succeeded()
    job.hold(quick=range(COUNT), slow=range(COUNT))
    for name in ("quick", "slow"):
        job.table(name).audit()
    assert job.run().succeeded()["rows_in"] == 0


def test_a_spill_is_not_used_once_the_pipeline_was_changed(tmp_path: Path) -> None:
    job = spilling(tmp_path)
    killed_with_frames(job)
    held = set(job.table("slow").ids())
    job.transforms = [{"name": "keep", "type": "filter", "when": "id % 10 <> 3"}]
    job.edges = [["in", "keep"], ["keep", "quick"], {"from": "keep", "to": "slow", "on_slow": "spill"}]
    job.run().succeeded()
    job.hold(slow=[number for number in range(COUNT) if number in held or number % 10 != 3])


def test_a_spill_budget_that_is_used_up_slows_the_source_and_loses_nothing(tmp_path: Path) -> None:
    job = spilling(tmp_path)
    job.settings = '[spill]\nbudget = "40kB"\n'
    ended = job.run("--channel-capacity", "1")
    ended.succeeded()
    assert "no room to spill, so the source waits" in ended.err
    job.hold(quick=range(COUNT), slow=range(COUNT))


def test_a_spill_that_cannot_hold_one_batch_says_so(tmp_path: Path) -> None:
    job = spilling(tmp_path)
    job.settings = '[spill]\nbudget = "100B"\n'
    ended = job.run("--channel-capacity", "1")
    ended.failed("in to slow: one batch takes .* KiB, the budget of all queues is 100 B; raise spill.budget")
    job.settings = ""
    job.run().succeeded()
    job.hold(quick=range(COUNT), slow=range(COUNT))
