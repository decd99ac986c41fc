"""Runs the real process, and reads its tables without any of its code.

What a table holds is found as any other engine would: the catalog's SQLite file names the metadata,
pyiceberg (as installed, with its own FileIO) the data files, and DuckDB counts their rows.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import StaticTable, Table

from tests.e2e.forking import Forked, start

ROOT = Path(__file__).resolve().parents[2]
CONVEYORD = Path(sys.executable).with_name("conveyord")
RUN_SECONDS_MAX = 180.0  # a run that takes longer here hangs
POLL_SECONDS = 0.005
HEAD = "apiVersion: conveyor.etl/v1\nkind: Pipeline\n"


@dataclass(frozen=True)
class Ended:
    """How a process ended. `rss_bytes` is the peak of its resident memory."""

    code: int
    out: str
    err: str
    rss_bytes: int

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one sentence that stderr ends in. Anything but one `error:` line is a failure of its own."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, f"expected one sentence on stderr:\n{self.err}"
        return lines[0].removeprefix("error: ")

    def succeeded(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        assert self.summary["status"] == "succeeded"
        return self.summary

    def orderly(self, code: int) -> None:
        """Assert the exit code, and that no bug is told of."""
        assert self.code == code, f"exit code {self.code}, expected {code}:\n{self.err}\n{self.out}"
        assert "Traceback" not in self.err, self.err
        assert "bug in conveyord" not in self.err, self.err

    def failed(self, *parts: str, code: int = 1) -> str:
        """Assert an orderly failure whose sentence has every part (regular expressions), and give it."""
        self.orderly(code)
        for part in parts:
            assert re.search(part, self.error), f"{part!r} is not in: {self.error}"
        return self.error


class Running:
    """A started process; its output goes to files, so that nothing waits for a reader.

    `conveyord` is forked from a process that has its imports, unless `is_new`; anything else is a new process anyway.
    """

    def __init__(
        self, arguments: list[str], cwd: Path, env: dict[str, str] | None = None, *, is_new: bool = False
    ) -> None:
        self._out = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed by `wait`
        self._err = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        environment = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | Forked
        with open(os.devnull, "rb") as nothing:
            streams = (nothing.fileno(), self._out.fileno(), self._err.fileno())
            if arguments[0] == str(CONVEYORD) and not is_new:
                self._process = start(arguments, cwd=cwd, env=environment, streams=streams)
            else:
                stdin, stdout, stderr = streams
                self._process = subprocess.Popen(
                    arguments, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, env=environment
                )
        self._ended: Ended | None = None
        self._rss_bytes = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def err(self) -> str:
        return os.pread(self._err.fileno(), os.fstat(self._err.fileno()).st_size, 0).decode()

    def has_ended(self) -> bool:
        """Whether it is gone by now."""
        return self._reap()

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has just ended, and who forked it has collected it
            os.kill(self.pid, number)

    def saw(self, text: str, *, times: int = 1) -> bool:
        """Wait until stderr holds `text` so often. False if the process ends before."""
        return self.until(lambda: self.err().count(text) >= times)

    def until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + RUN_SECONDS_MAX
        while not condition():
            if self._reap():
                return False
            assert time.monotonic() < deadline, f"waited in vain; stderr:\n{self.err()}"
            time.sleep(POLL_SECONDS)
        return True

    def killed_after(self, seconds: float) -> bool:
        """SIGKILL it after so long. False if it ended by itself before."""
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self._reap():
                    return False
                time.sleep(POLL_SECONDS)
            self.send(signal.SIGKILL)
        finally:
            ended = self.wait()
        return ended.code == -signal.SIGKILL

    def wait(self) -> Ended:
        deadline = time.monotonic() + RUN_SECONDS_MAX
        while not self._reap():
            if time.monotonic() > deadline:
                said = self.err()
                self.send(signal.SIGKILL)
                self._process.wait()
                self._reap()
                raise AssertionError(f"a run did not end within {RUN_SECONDS_MAX:g} s:\n{said}")
            time.sleep(POLL_SECONDS)
        assert self._ended is not None
        return self._ended

    def _reap(self) -> bool:
        """Collect the process if it has ended, and note its peak memory as long as it has not."""
        if self._ended is not None:
            return True
        # Not the kernel's ru_maxrss: it starts with what the tests' own process had when it forked.
        with suppress(OSError):
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
            self._rss_bytes = int(peak[1]) * 1024 if peak else self._rss_bytes
        code = self._process.poll()
        if code is None:
            return False
        self._out.seek(0)
        out, err = self._out.read().decode(), self.err()
        self._ended = Ended(code, out, err, self._rss_bytes)
        self._out.close()
        self._err.close()
        return True


def conveyord(*arguments: str | Path, cwd: Path) -> Ended:
    """Run one command to its end."""
    return Running([str(CONVEYORD), *map(str, arguments)], cwd).wait()


class TableFiles:
    """One table of a data directory, as other engines find it."""

    def __init__(self, data_dir: Path, table: str) -> None:
        self.data_dir = data_dir
        self.table = table

    def audit(self) -> dict[str, Any]:
        """The audit's report, which must find nothing wrong."""
        ended = conveyord("audit", self.table, "--data-dir", self.data_dir, "-o", "json", cwd=self.data_dir.parent)
        assert ended.code == 0, ended.out + ended.err
        assert ended.summary["ok"]
        return ended.summary

    def metadata_location(self) -> str | None:
        """What the catalog's SQLite file names, None if there is no such table."""
        database = self.data_dir / "catalog.db"
        if not database.exists():
            return None
        query = "SELECT metadata_location FROM iceberg_tables WHERE table_namespace || '.' || table_name = ?"
        with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=30)) as connection:
            try:
                row = connection.execute(query, (self.table,)).fetchone()
            except sqlite3.OperationalError:  # killed before the catalog's tables were made
                return None
        return None if row is None else str(row[0])

    def static_table(self) -> StaticTable:
        location = self.metadata_location()
        assert location is not None, f"no table {self.table}"
        return StaticTable.from_metadata(location)

    def snapshot_id(self) -> int | None:
        if self.metadata_location() is None:
            return None
        head = self.static_table().current_snapshot()
        return None if head is None else head.snapshot_id

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Run `query` in DuckDB over the Parquet files of the current snapshot, as the view `t`."""
        files = [local(task.file.file_path) for task in self.static_table().scan().plan_files()]
        with duckdb.connect() as connection:
            listed = ", ".join(f"'{file}'" for file in files)
            options = "union_by_name=true, hive_partitioning=false"
            connection.execute(f"CREATE VIEW t AS SELECT * FROM read_parquet([{listed}], {options})")
            return connection.execute(query).fetchall()

    def ids(self, column: str = "id") -> list[int]:
        if self.snapshot_id() is None or not list(self.static_table().scan().plan_files()):
            return []
        return [row[0] for row in self.sql(f'SELECT "{column}" FROM t ORDER BY 1')]

    def holds(self, expected: Iterable[int]) -> None:
        """Assert that the column `id` is exactly `expected`, each once."""
        found, wanted = self.ids(), sorted(expected)
        if found != wanted:
            lost, extra = set(wanted) - set(found), len(found) - len(set(found))
            strange = set(found) - set(wanted)
            raise AssertionError(
                f"{len(found)} rows for {len(wanted)}: {len(lost)} lost {sorted(lost)[:5]}, {extra} doubled, "
                f"{len(strange)} strange {sorted(strange)[:5]}"
            )

    def writer(self) -> Table:
        """The table as another program would write it, by pyiceberg alone."""
        properties = {"warehouse": f"file://{self.data_dir / 'warehouse'}"}
        uri = f"sqlite:///{self.data_dir / 'catalog.db'}?timeout=30"
        return SqlCatalog("lake", uri=uri, **properties).load_table(self.table)

    def suspects(self) -> set[str]:
        """Files that the ledger still means to look at."""
        with closing(sqlite3.connect(self.data_dir / "runs.db")) as connection:
            return {local(path) for (path,) in connection.execute("SELECT path FROM lake_files")}

    def orphans(self) -> set[str]:
        """Files of the table that nothing names: no metadata that is kept, no snapshot, no ledger."""
        table = self.static_table()
        named = {table.metadata_location} | {entry.metadata_file for entry in table.metadata.metadata_log}
        for snapshot in table.metadata.snapshots:
            named.add(snapshot.manifest_list)
            for manifest in snapshot.manifests(table.io):
                named.add(manifest.manifest_path)
                entries = manifest.fetch_manifest_entry(table.io, discard_deleted=False)
                named |= {entry.data_file.file_path for entry in entries}
        for key, value in table.properties.items():
            if key.endswith(".fence") and "archive" in (fence := json.loads(value)):
                named.add(fence["archive"]["location"])
        root = Path(local(table.location()))
        found = {str(path) for path in root.rglob("*") if path.is_file()}
        return found - {local(path) for path in named} - self.suspects()


@dataclass
class Job(TableFiles):
    """A pipeline file, its input folder and its data directory, all below `home`."""

    home: Path
    source: dict[str, Any] = field(default_factory=lambda: {"type": "file_jsonl", "path": "in/*"})
    steps: list[dict[str, Any]] = field(default_factory=list)
    sink: dict[str, Any] = field(default_factory=dict)
    name: str = "job"
    table: str = "ns.t"

    def __post_init__(self) -> None:
        self.input.mkdir(parents=True, exist_ok=True)
        self.data_dir = self.home / "data"

    @property
    def input(self) -> Path:
        return self.home / "in"

    @property
    def file(self) -> Path:
        """The pipeline file, written anew. JSON is YAML."""
        path = self.home / f"{self.name}.yaml"
        sink = {"type": "iceberg", "table": self.table, **self.sink}
        spec = {"source": self.source, "steps": self.steps, "sink": sink}
        body = json.dumps({"name": self.name}), json.dumps(spec)
        path.write_text(f"{HEAD}metadata: {body[0]}\nspec: {body[1]}\n", encoding="utf-8")
        return path

    def start(self, *flags: str | Path) -> Running:
        fixed = [str(CONVEYORD), "run", str(self.file), "--data-dir", str(self.data_dir), "-o", "json"]
        return Running([*fixed, "--log-level", "debug", *map(str, flags)], self.home)

    def run(self, *flags: str | Path) -> Ended:
        return self.start(*flags).wait()


def local(location: str) -> str:
    return location.removeprefix("file://")


def lines(ids: Iterable[int], **more: Any) -> bytes:
    """JSON lines with unique ids, a text, a number, a nested object and a time."""
    return b"".join(line(number, **more) for number in ids)


def line(number: int, **more: Any) -> bytes:
    record = {
        "id": number,
        "name": f"name {number % 1000}",
        "value": number / 8,
        "place": {"zone": number % 7, "tag": f"t{number % 13}"},
        "at": f"2024-01-{number % 5 + 1:02d}T10:00:{number % 60:02d}Z",
    }
    return json.dumps({**record, **more}).encode() + b"\n"
