"""The real process, killed at random while it loads, again and again on one data directory.

Afterwards every record is in the table exactly once, counted by DuckDB in the files that the table's
metadata names. The seed is printed; the moments are repeatable, what they hit is not.
"""

from __future__ import annotations

import faulthandler
import gzip
import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from pyiceberg.table import StaticTable

from tests.e2e.drift import Drift, holds_values
from tests.e2e.harness import Job, Running, lines, local

SEED = int(os.environ.get("CONVEYORD_SEED", "20240601"))
EARLY_SHARE = 0.2  # of the kills fall anywhere in the first moments: opening, the first commit
EARLY_SECONDS_MAX = 0.8  # from where the imports are done, see tests/e2e/forking.py
COMMITS_MAX = 4
COMMIT_SECONDS = 0.08  # about one round of reading, writing and committing
SNAPSHOTS_MAX = 110  # what maintenance keeps, and the commits between two of its rounds
SMALL_BLOCKS = {"type": "file_jsonl", "path": "in/*", "block_bytes": 65536}
OFTEN = {"rows": 800, "every": "0.1s"}
# However slow the machine is: what lies about is swept behind the first commit of a run, and behind every tenth.
AT_ONCE = {"rows": 10**6, "every": "1h"}

SHAPED: dict[str, Any] = {
    "steps": [
        {"type": "json_flatten", "separator": "_"},
        {
            "type": "sql_transform",
            "query": "SELECT id, name, value, place_zone, at, _source, _partition, _offset FROM input_data",
        },
        {"type": "filter", "when": "id % 10 <> 3"},
    ],
    "sink": {"commit": OFTEN, "provenance": True, "partition_by": ["place_zone", "bucket(2, id)"]},
}
PLAIN: dict[str, Any] = {"sink": {"commit": OFTEN}}
WITH_PROVENANCE: dict[str, Any] = {"sink": {"commit": OFTEN, "provenance": True}}


class Load:
    """An input that can be made longer: records with consecutive ids, in files of three kinds."""

    suffix = "jsonl"

    def __init__(self, job: Job) -> None:
        self.job = job
        self.records = 0
        self.files = 0

    def content(self, numbers: range, *, appended: bool) -> bytes:
        """What a new file holds, or what is `appended` to the first one."""
        return lines(numbers)

    def holds(self, keep: Callable[[int], bool]) -> None:
        """Assert that the table has the records that `keep` names, once each."""
        self.job.holds(number for number in range(self.records) if keep(number))

    def add(self, count: int) -> None:
        """One more file, sorted behind those that are there."""
        content = self.content(range(self.records, self.records + count), appended=False)
        name = f"{self.files:04d}.{self.suffix}"
        if self.files % 3 == 1:
            (self.job.input / f"{name}.gz").write_bytes(gzip.compress(content, 1))
        elif self.files % 3 == 2:
            (self.job.input / f"{name}.zst").write_bytes(zstandard.compress(content))
        else:
            (self.job.input / name).write_bytes(content)
        self.records += count
        self.files += 1

    def append(self, count: int) -> None:
        """Make the first file, which is plain, longer."""
        with (self.job.input / f"0000.{self.suffix}").open("ab") as file:
            file.write(self.content(range(self.records, self.records + count), appended=True))
        self.records += count


class DriftingLoad(Load):
    """Records whose fields come, change their type and grow, unknown to the sample and to earlier runs."""

    def __init__(self, job: Job, drift: Drift) -> None:
        super().__init__(job)
        self.drift = drift

    def content(self, numbers: range, *, appended: bool) -> bytes:
        return self.drift.json_lines(numbers)

    def holds(self, keep: Callable[[int], bool]) -> None:
        holds_values(self.job, self.records, self.drift.record)


class DriftingCsvLoad(DriftingLoad):
    """The same as CSV: new columns come with the header of a new file, other types anywhere."""

    suffix = "csv"

    def __init__(self, job: Job, drift: Drift) -> None:
        super().__init__(job, drift)
        self.headers: list[tuple[range, int]] = []

    def content(self, numbers: range, *, appended: bool) -> bytes:
        fields_of = 0 if appended else numbers[0]
        self.headers.append((numbers, fields_of))
        return self.drift.csv_rows(numbers, fields_of=fields_of, header=not appended)

    def holds(self, keep: Callable[[int], bool]) -> None:
        fields = [fields_of for numbers, fields_of in self.headers for _ in numbers]
        holds_values(self.job, self.records, lambda number: self.drift.row(number, fields[number]))


def phase(job: Job, before: int | None) -> str:
    """What the run that was just killed was doing, by what it left."""
    now = job.snapshot_id()
    open_attempt = any(
        path.endswith(".avro") and path not in reachable_metadata(job)
        for path in (job.suspects() if (job.data_dir / "runs.db").exists() else ())
        if Path(path).exists()
    )
    if open_attempt:
        return "during a commit"
    return "before its first commit" if now == before else "between two commits"


def reachable_metadata(job: Job) -> set[str]:
    if job.metadata_location() is None:
        return set()
    table = job.static_table()
    named = {local(snapshot.manifest_list) for snapshot in table.metadata.snapshots}
    for snapshot in table.metadata.snapshots:
        named |= {local(manifest.manifest_path) for manifest in snapshot.manifests(table.io)}
    return named


def kill_loop(
    job: Job, *, kills: int, records: int, files: int, expected: Any = None, load: Load | None = None
) -> Counter[str]:
    """Kill `kills` runs, finish, and assert that every record is there once. Returns what was hit."""
    # pytest dumps the threads of a test after two minutes, which is no hang here, and the dump can crash.
    faulthandler.cancel_dump_traceback_later()
    rng, load, phases = random.Random(SEED), load or Load(job), Counter[str]()
    print(f"seed={SEED}")
    for _ in range(files):
        load.add(records // files)
    while phases.total() < kills:
        before = job.snapshot_id()
        running = job.start()
        # Mostly some way into its commits, wherever a busy machine lets those begin; else anywhere.
        if rng.random() < EARLY_SHARE or not running.saw("committed", times=rng.randint(1, COMMITS_MAX)):
            pause = rng.uniform(0.0, EARLY_SECONDS_MAX)
        else:
            pause = rng.uniform(0.0, COMMIT_SECONDS)
        if running.killed_after(pause):
            phases[phase(job, before)] += 1
        elif rng.random() < 0.5:
            load.add(records // files)
        else:
            load.append(records // files)
    job.sink = {**job.sink, "commit": AT_ONCE}  # the rest, and more: what was left behind goes after a commit
    load.add(records // files)
    job.run().succeeded()
    print(f"kills: {dict(phases)}, records: {load.records}, files: {load.files}")
    load.holds(expected or (lambda number: True))
    again = job.run().succeeded()
    assert again["rows_in"] == 0
    check_leftovers(job)
    report = job.audit()
    assert report["basis"] == ("provenance" if job.sink.get("provenance") else "fence")
    return phases


def is_of_a_creation_that_was_killed(path: str, table: StaticTable) -> bool:
    """Whether `path` is the first metadata of a table that is none."""
    if not re.fullmatch(r"00000-.*\.metadata\.json", Path(path).name):
        return False
    return str(json.loads(Path(path).read_text())["table-uuid"]) != str(table.metadata.table_uuid)


def is_half_written(path: str) -> bool:
    """Whether `path` is metadata whose writer was killed."""
    if not path.endswith(".metadata.json"):
        return False
    try:
        json.loads(Path(path).read_text())
    except ValueError:
        return True
    return False


def check_leftovers(job: Job) -> None:
    """Nothing lies about that no snapshot, no kept metadata and no entry of the ledger names.

    But for the first metadata of a table that the catalog never heard of, as its creation was killed: nobody can tell
    it from that of a table of another catalog in the same place, so it stays; and so does what is half written there.
    """
    table = job.static_table()
    orphans = job.orphans()
    strangers = {path for path in orphans if is_of_a_creation_that_was_killed(path, table)}
    assert not [path for path in orphans - strangers if not (strangers and is_half_written(path))]
    assert len(table.metadata.snapshots) <= SNAPSHOTS_MAX
    assert len(table.metadata.metadata_log) <= SNAPSHOTS_MAX
    data = {path for path in job.suspects() if path.endswith(".parquet") and Path(path).exists()}
    live = {local(task.file.file_path) for task in table.scan().plan_files()}
    assert not data - live, "data files of killed runs were not swept"


def test_every_record_is_there_once_after_a_few_kills(tmp_path: Path) -> None:
    job = Job(tmp_path, source=SMALL_BLOCKS, sink={"commit": OFTEN})
    kill_loop(job, kills=4, records=30_000, files=3)


@pytest.mark.check
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("shape", "kills"), [(PLAIN, 15), (WITH_PROVENANCE, 30)], ids=["plain-15", "provenance-30"])
def test_every_record_is_there_once_after_many_kills(tmp_path: Path, shape: dict[str, Any], kills: int) -> None:
    job = Job(tmp_path, source=SMALL_BLOCKS, **shape)
    phases = kill_loop(job, kills=kills, records=200_000, files=6)
    assert phases["between two commits"]
    assert phases["during a commit"]


@pytest.mark.check
@pytest.mark.timeout(900)
def test_every_record_is_there_once_behind_transforms_and_partitions(tmp_path: Path) -> None:
    job = Job(tmp_path, source=SMALL_BLOCKS, **SHAPED)
    phases = kill_loop(job, kills=20, records=120_000, files=6, expected=lambda number: number % 10 != 3)
    assert phases["between two commits"] or phases["during a commit"]


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shape", [WITH_PROVENANCE, SHAPED], ids=["plain", "shaped"])
def test_every_record_is_there_once_after_500_kills(tmp_path: Path, shape: dict[str, Any]) -> None:
    job = Job(tmp_path, source=SMALL_BLOCKS, **shape)
    expected = (lambda number: number % 10 != 3) if shape is SHAPED else None
    kill_loop(job, kills=500, records=400_000, files=8, expected=expected)


# ------------------------------------------------------------------ while the table grows

SMALL_BLOCKS_CSV = {**SMALL_BLOCKS, "type": "file_csv"}
FREQUENT = {"rows": 400, "every": "0.1s"}  # about a commit for each era
CHECKED = Drift(era_records=500, slots=100)
SOAKED = Drift(era_records=2000, slots=200)


def drifting(home: Path, drift: Drift, *, form: str) -> DriftingLoad:
    """A job over fields that change, and its input, which is still empty."""
    if form == "csv":
        return DriftingCsvLoad(Job(home, source=SMALL_BLOCKS_CSV, sink={"commit": FREQUENT}), drift)
    return DriftingLoad(Job(home, source=SMALL_BLOCKS, sink={"commit": FREQUENT, "provenance": True}), drift)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_every_value_is_there_once_while_fields_change(tmp_path: Path, form: str) -> None:
    load = drifting(tmp_path, CHECKED, form=form)
    kill_loop(load.job, kills=2, records=8_000, files=4, load=load)


@pytest.mark.check
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("form", "kills"), [("jsonl", 15), ("csv", 10)], ids=["jsonl-15", "csv-10"])
def test_every_value_is_there_once_after_many_kills_while_fields_change(tmp_path: Path, form: str, kills: int) -> None:
    load = drifting(tmp_path, CHECKED, form=form)
    phases = kill_loop(load.job, kills=kills, records=36_000, files=6, load=load)
    assert phases["between two commits"] or phases["during a commit"]


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_every_value_is_there_once_after_200_kills_while_fields_change(tmp_path: Path, form: str) -> None:
    load = drifting(tmp_path, SOAKED, form=form)
    kill_loop(load.job, kills=200, records=120_000, files=40, load=load)


# ------------------------------------------------------------------ asked to stop


def stopped(running: Running, *numbers: signal.Signals) -> int:
    """Send the signals after the first commit, each after the process answered the one before it."""
    assert running.saw("committed")
    for number in numbers[:-1]:
        running.send(number)
        running.saw("draining")
    running.send(numbers[-1])
    return running.wait().code


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.check)], ids=["SIGTERM", "SIGINT"]
)
def test_one_signal_drains_and_the_next_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    job = Job(tmp_path, source=SMALL_BLOCKS, sink={"commit": OFTEN, "provenance": True})
    load = Load(job)
    for _ in range(3):
        load.add(15_000)
    running = job.start()
    assert running.saw("committed")
    running.send(number)
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert ended.summary["status"] == "drained"
    drained = job.ids()
    assert drained == list(range(len(drained))), "what was read is committed, without a hole"
    assert ended.summary["rows_in"] == len(drained) < load.records
    job.sink["commit"] = {}
    job.run().succeeded()
    job.holds(range(load.records))
    job.audit()


@pytest.mark.check
def test_a_second_signal_stops_at_once_and_the_next_run_goes_on(tmp_path: Path) -> None:
    # One large uncommitted batch after another, so that draining takes longer than the second signal.
    job = Job(tmp_path, sink={"commit": {"rows": 8_000}}, source={**SMALL_BLOCKS, "block_bytes": "1MiB"})
    load = Load(job)
    for _ in range(3):
        load.add(40_000)
    assert stopped(job.start(), signal.SIGINT, signal.SIGINT) == 128 + signal.SIGINT
    cut = job.ids()
    assert cut == list(range(len(cut)))
    assert len(cut) < load.records
    job.run().succeeded()
    job.holds(range(load.records))
    job.audit()
    check_leftovers(job)
