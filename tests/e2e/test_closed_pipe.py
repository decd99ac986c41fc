"""A terminal sink beside a table: who reads its output may leave early, and the table still gets every row."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.e2e.harness import CONVEYORD, HEAD

RECORDS = 60_000  # far more output than a pipe holds


def test_a_reader_that_leaves_ends_its_branch_alone(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"id": {number}}}\n' for number in range(RECORDS)), encoding="utf-8")
    spec = {
        "sources": [{"name": "in", "type": "file_jsonl", "path": "in.jsonl", "batch_rows": 500}],
        "transforms": [{"name": "on", "type": "passthrough"}],
        "sinks": [
            {"name": "lake", "type": "iceberg", "table": "ns.t"},
            {"name": "show", "type": "stdout_pretty", "format": "json", "limit": None},
        ],
        "edges": [["in", "lake"], ["in", "on"], ["on", "show"]],
    }
    definition = tmp_path / "p.yaml"
    definition.write_text(f"{HEAD}metadata: {{name: p}}\nspec: {json.dumps(spec)}\n", encoding="utf-8")
    command = [CONVEYORD, "run", definition, "--data-dir", tmp_path / "data"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        first = json.loads(run.stdout.readline())
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(timeout=60) == 0, said
    assert first == {"id": 0}
    assert f"lake      {RECORDS:,} rows" in said
    assert "failed" not in said
