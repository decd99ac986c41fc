"""Pipelines that run together keep their own names: in tables, in messages, in fences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.harness import CONVEYORD, HEAD, Running, TableFiles

RECORDS = 2_000


def define(home: Path, name: str, spec: dict[str, Any]) -> Path:
    path = home / f"{name}.yaml"
    path.write_text(f"{HEAD}metadata: {{name: {name}}}\nspec: {json.dumps(spec)}\n", encoding="utf-8")
    return path


def records(home: Path) -> dict[str, Any]:
    lines = "".join(f'{{"id": {number}}}\n' for number in range(RECORDS))
    (home / "in.jsonl").write_text(lines, encoding="utf-8")
    return {"type": "file_jsonl", "path": "in.jsonl", "batch_rows": 500}


def run(home: Path, *definitions: Path) -> Any:
    command = [str(CONVEYORD), "run", *map(str, definitions), "--data-dir", str(home / "data"), "-o", "json"]
    return Running(command, home).wait()


def test_provenance_names_the_pipelines_own_source(tmp_path: Path) -> None:
    source = records(tmp_path)
    placed = define(
        tmp_path, "placed", {"source": source, "sink": {"type": "iceberg", "table": "ns.a", "provenance": True}}
    )
    plain = define(tmp_path, "plain", {"source": source, "sink": {"type": "iceberg", "table": "ns.b"}})
    ended = run(tmp_path, placed, plain)
    assert ended.code == 0, ended.err
    table = TableFiles(tmp_path / "data", "ns.a")
    assert table.sql('SELECT DISTINCT "_source" FROM t') == [("source",)]
    report = table.audit()
    assert (report["basis"], report["ok"]) == ("provenance", True)
    assert TableFiles(tmp_path / "data", "ns.b").sql("SELECT count(*) FROM t") == [(RECORDS,)]


def test_a_stage_that_fails_is_called_what_its_own_pipeline_calls_it(tmp_path: Path) -> None:
    source = {"name": "in", **records(tmp_path)}
    good = define(
        tmp_path,
        "good",
        {"source": source, "steps": [{"type": "passthrough"}], "sink": {"type": "iceberg", "table": "ns.a"}},
    )
    bad = define(
        tmp_path,
        "bad",
        {
            "sources": [source],
            "transforms": [{"name": "on", "type": "passthrough"}],
            "sinks": [{"name": "t", "type": "iceberg", "table": "ns.b"}],
            "edges": [["in", "on"], {"from": "on", "to": "t", "when": "10 / (id - 700) >= 0"}],
        },
    )
    ended = run(tmp_path, good, bad)
    assert ended.code == 1
    first, second = json.loads(ended.out)
    assert (first["status"], second["status"]) == ("succeeded", "failed")
    assert second["error"]["stage"] == "on"
    assert TableFiles(tmp_path / "data", "ns.a").ids() == list(range(RECORDS))
