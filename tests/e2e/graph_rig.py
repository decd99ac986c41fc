"""Pipelines that are graphs, run as real processes, and their tables and dead letters read by others' code."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from tests.e2e.harness import CONVEYORD, HEAD, Ended, Running, TableFiles, conveyord, local

Options = dict[str, Any]
RECORDS = {"name": "in", "type": "file_jsonl", "path": "in/*", "block_bytes": 65536}


def sink(name: str, **options: Any) -> Options:
    """An Iceberg sink into a table of its own, `ns.<name>`."""
    return {"name": name, "type": "iceberg", "table": f"ns.{name}", **options}


@dataclass
class GraphJob:
    """A pipeline file in the form of a graph, an input folder and a data directory, all below `home`."""

    home: Path
    sources: list[Options] = field(default_factory=lambda: [dict(RECORDS)])
    transforms: list[Options] = field(default_factory=list)
    sinks: list[Options] = field(default_factory=list)
    edges: list[Any] = field(default_factory=list)
    dlq: Options | None = None
    name: str = "job"
    settings: str = ""
    """The conveyord.toml."""

    def __post_init__(self) -> None:
        self.input = self.home / "in"
        self.data_dir = self.home / "data"
        self.input.mkdir(parents=True, exist_ok=True)

    def write(self, **spec: Any) -> Path:
        """The pipeline file, written anew as are the settings. JSON is YAML. spec: more keys of the specification."""
        path = self.home / f"{self.name}.yaml"
        body = {"sources": self.sources, "transforms": self.transforms, "sinks": self.sinks, "edges": self.edges}
        dlq = {} if self.dlq is None else {"dlq": self.dlq}
        text = json.dumps({**{key: part for key, part in body.items() if part}, **dlq, **spec})
        path.write_text(f"{HEAD}metadata: {json.dumps({'name': self.name})}\nspec: {text}\n", encoding="utf-8")
        (self.home / "conveyord.toml").write_text(self.settings, encoding="utf-8")
        return path

    def start(self, *flags: str | Path) -> Running:
        """Run it, and with it other files among `flags`."""
        fixed = [str(CONVEYORD), "run", str(self.write()), "--data-dir", str(self.data_dir), "-o", "json"]
        return Running([*fixed, "--log-level", "debug", *map(str, flags)], self.home)

    def run(self, *flags: str | Path) -> Ended:
        return self.start(*flags).wait()

    def table(self, name: str) -> TableFiles:
        """The table of the sink `name`."""
        return TableFiles(self.data_dir, f"ns.{name}")

    def hold(self, **expected: Iterable[int]) -> None:
        """Assert that each table named has exactly these ids, each once."""
        wrong = []
        for name, ids in expected.items():
            if difference := self.difference(name, ids):
                wrong.append(f"{name}: {difference}")
        assert not wrong, wrong

    def difference(self, name: str, ids: Iterable[int]) -> str:
        """How a table differs from holding `ids` once each, by DuckDB; nothing if it does not."""
        table, wanted = self.table(name), set(ids)
        found = table.ids() if columns(table) else []
        lost, strange, doubled = wanted - set(found), set(found) - wanted, len(found) - len(set(found))
        if not lost and not strange and not doubled:
            return ""
        return (
            f"{len(found)} rows for {len(wanted)}: {len(lost)} lost {sorted(lost)[:5]}, {doubled} doubled, "
            f"{len(strange)} strange {sorted(strange)[:5]}"
        )

    def letters(self) -> list[dict[str, Any]]:
        """Every dead letter, as `dlq export` writes it."""
        out = self.home / "letters.jsonl"
        ended = conveyord("dlq", "export", out, "--data-dir", self.data_dir, cwd=self.home)
        assert ended.code == 0, ended.err
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    def letter_count(self) -> int:
        """How many there are in the index, by SQLite alone."""
        index = self.data_dir / "dead-letters" / "index.db"
        if not index.exists():
            return 0
        with closing(sqlite3.connect(f"file:{index}?mode=rw", uri=True, timeout=30)) as connection:
            made = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'letters'").fetchone()[0]
            return int(connection.execute("SELECT count(*) FROM letters").fetchone()[0]) if made else 0

    def spilled(self) -> list[Path]:
        """The segments that lie in spill directories."""
        return sorted(path for path in (self.data_dir / "spill").rglob("*.seg") if path.is_file())


def columns(table: TableFiles) -> list[str]:
    """The names of a table's columns. None if there is no table yet."""
    if table.metadata_location() is None:
        return []
    return [column.name for column in table.static_table().schema().fields]


def copies(table: TableFiles) -> list[dict[str, Any]]:
    """The rows of a `dlq.sink`, by DuckDB."""
    if table.snapshot_id() is None:
        return []
    files = [local(task.file.file_path) for task in table.static_table().scan().plan_files()]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        relation = connection.sql("SELECT * FROM read_parquet(?, hive_partitioning=false) ORDER BY id", params=[files])
        return list(relation.to_arrow_table().to_pylist()) if files else []


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Everything below a directory, with its size and time of change."""
    found = sorted(root.rglob("*"))
    return {str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}
