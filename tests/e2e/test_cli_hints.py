"""What a summary says of where the rows are, and the commands that it names: each is tried."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from conveyord.cli.hints import hints
from conveyord.cli.options import Setting
from conveyord.config import Config
from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.registry import installed
from tests.e2e.harness import HEAD

SOURCE = "source: {type: kafka, brokers: 'b:9092', topics: ['^a']}"


def said(sinks: str, *, data_dir: str = "conveyord-data", config: Path | None = None) -> dict[str, str]:
    text = f"{HEAD}metadata: {{name: p}}\nspec:\n  {SOURCE}\n  {sinks}\n"
    (pipeline,) = parse_pipelines({"p.yaml": text.encode()}, registry=installed(), environ={})
    return dict(hints(pipeline, Setting(Config(), Path(data_dir)), config))


@pytest.mark.parametrize(
    ("sinks", "expected"),
    [
        ("sink: {type: kafka, bootstrap_servers: 'k:9092', topic: late}", {"topic": "late, at k:9092"}),
        ("sink: {type: parquet_dir, path: /data/out}", {"files": "/data/out", "check": "conveyord audit /data/out"}),
        (
            "sink: {type: file_jsonl, path: my rows.jsonl}",
            {"files": f"{Path.cwd()}/my rows.jsonl", "check": "conveyord audit './my rows.jsonl'"},
        ),
        (
            "sink: {type: iceberg_topics, table: 'raw.{topic}', catalog: c}",
            {"tables": "raw.{topic}, in the catalog 'c'", "look": "conveyord query 'SHOW TABLES' --catalog c"},
        ),
        ("sink: {type: stdout_pretty}", {}),
    ],
)
def test_the_kind_of_sink_decides_what_is_said(sinks: str, expected: dict[str, str]) -> None:
    assert said(sinks) == expected


def test_a_table_is_told_before_files_and_never_the_one_of_dead_letters() -> None:
    graph = "dlq: {sink: {type: iceberg, table: bad.letters}}\n  steps: []\n  sink: {type: file_jsonl, path: out/rows}"
    assert "out/rows" in said(graph)["check"]
    found = said("sink: {type: iceberg, table: a.b-c}", data_dir="d", config=Path("x.toml"))
    assert found["look"] == "conveyord query 'SELECT * FROM a.\"b-c\" LIMIT 10' --data-dir d --config x.toml"
    assert found["check"] == "conveyord audit a.b-c --data-dir d --config x.toml"


def test_the_command_that_is_named_for_a_directory_works(
    shell: Any, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = "{type: file_jsonl, path: out}"
    text = f"{HEAD}metadata: {{name: p}}\nspec:\n  source: {{type: generate, rows: 3}}\n  sink: {sink}\n"
    (tmp_path / "p.yaml").write_text(text)
    ended = shell.run("run", "p.yaml", cwd=tmp_path)
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if line.split()[0] == "check"]
    monkeypatch.chdir(tmp_path)
    assert call(*shlex.split(line.partition("conveyord ")[2])).code == 0
