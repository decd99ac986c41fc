"""Schema contracts and growing tables, by the real process; rows are read back by DuckDB."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.graph_rig import GraphJob, columns, sink
from tests.e2e.harness import ROOT, conveyord, line, lines
from tests.e2e.test_dlq_replay import is_report, replayed
from tests.storage.duckdb_reader import duckdb_rows

FIELDS = ["id", "name", "value", "place", "at"]
MOVIES = ROOT / "tests" / "data" / "real" / "movies.jsonl"


@dataclass
class Contracted(GraphJob):
    """in -> out, under a contract."""

    schema: dict[str, str] = field(default_factory=dict)

    def write(self, **spec: Any) -> Path:
        return super().write(schema=self.schema, **spec)


def contracted(home: Path, *, dlq: dict[str, Any] | None = None, **schema: str) -> Contracted:
    """A pipeline whose table has a hundred plain records."""
    job = Contracted(home, sinks=[sink("out")], edges=[["in", "out"]], dlq=dlq)
    (job.input / "a.jsonl").write_bytes(lines(range(100)))
    job.run().succeeded()
    job.schema = schema
    return job


def test_rows_that_break_the_contract_are_letters_and_arrive_once_it_is_lifted(tmp_path: Path) -> None:
    job = contracted(tmp_path, dlq={}, tables="freeze", columns="freeze", types="freeze")
    broken = {103: {"extra": 1}, 107: {"place": {"zone": 1, "new": True}}, 111: {"value": "many"}}
    (job.input / "b.jsonl").write_bytes(b"".join(line(n, **broken.get(n, {})) for n in range(100, 120)))
    summary = job.run().succeeded()
    assert (summary["rows_out"], summary["dead_letters"], summary["discarded_values"]) == (17, 3, 0)
    job.hold(out=set(range(120)) - broken.keys())
    assert columns(job.table("out")) == FIELDS
    letters = {letter["row"]["id"]: letter for letter in job.letters()}
    assert letters.keys() == broken.keys()
    assert all(letter["raw"].encode() == line(n, **broken[n]).rstrip(b"\n") for n, letter in letters.items())
    assert "no column 'place.new'" in letters[107]["message"]
    job.table("out").audit()
    assert job.run().succeeded()["rows_in"] == 0
    is_report(replayed(job), failed_again=3)
    job.schema = {}
    is_report(replayed(job), replayed=3)
    job.hold(out=range(120))
    rows = {row["id"]: row for row in duckdb_rows(job.table("out").writer())}
    assert (rows[103]["extra"], rows[107]["place"]["new"], rows[111]["value__string"]) == (1, True, "many")
    job.table("out").audit()


def test_values_that_the_contract_leaves_out_are_counted_in_the_report(tmp_path: Path) -> None:
    job = contracted(tmp_path, columns="discard_value", types="discard_value")
    (job.input / "b.jsonl").write_bytes(line(100, extra=1) + line(101, place={"new": 2}, value="many") + line(102))
    summary = job.run().succeeded()
    assert (summary["rows_out"], summary["discarded_values"], summary["sinks"][0]["discarded_values"]) == (3, 3, 3)
    job.hold(out=range(103))
    assert columns(job.table("out")) == FIELDS
    rows = {row["id"]: row for row in duckdb_rows(job.table("out").writer())}
    assert (rows[101]["value"], rows[101]["place"]) == (None, {"zone": None, "tag": None})


def test_without_dlq_a_breach_stops_the_run(tmp_path: Path) -> None:
    job = contracted(tmp_path, columns="discard_row")
    (job.input / "b.jsonl").write_bytes(line(100) + line(101, extra=1))
    job.run().failed(r"b\.jsonl bytes 0 to \d+: table ns\.out: there is no column 'extra'", "discard_row")
    job.hold(out=range(100))


def test_a_contract_that_no_sink_keeps_and_one_that_makes_no_sense_are_refused_with_their_places(
    tmp_path: Path,
) -> None:
    job = contracted(tmp_path, columns="freeze", types="ignore")
    ended = conveyord("validate", job.write(), cwd=tmp_path)
    assert ended.code == 2
    assert "'types' must be evolve or freeze or discard_row or discard_value" in ended.out + ended.err
    job.schema, job.sinks = {"columns": "freeze"}, [{"name": "out", "type": "stdout_pretty"}]
    ended = conveyord("validate", job.write(), cwd=tmp_path)
    assert ended.code == 2
    assert "'schema' is a contract of tables, and no sink here has one (stdout_pretty)" in ended.out + ended.err


# -------------------------------------------------------------------- real, dirty records


def scalars(value: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from scalars(child, (*path, key))
    elif value is not None:
        yield path, value


def found_in(row: dict[str, Any], key: str, value: Any) -> bool:
    """Whether `row` holds `value` in the column of that name, as it is or as its text, or in a sibling."""
    for name, held in row.items():
        if held is not None and (name == key or name.startswith(f"{key}__")):
            same = held == value and isinstance(held, bool) == isinstance(value, bool)
            if same or held == json.dumps(value):
                return True
    return False


def test_every_value_of_the_movies_is_findable_in_order(tmp_path: Path) -> None:
    assert_movies(tmp_path, [MOVIES.read_bytes()])


@pytest.mark.check
def test_every_value_of_the_movies_is_findable_however_late_their_types_are_learned(tmp_path: Path) -> None:
    """Each file is a source of its own schema, so that the table, not the sample, must make the types meet."""
    records = MOVIES.read_bytes().splitlines(keepends=True)
    assert_movies(tmp_path, [b"".join(records[at::7]) for at in range(7)], runs=7)


def assert_movies(home: Path, files: list[bytes], *, runs: int = 1) -> None:
    job = GraphJob(home, sinks=[sink("out")], edges=[["in", "out"]])
    for number, content in enumerate(files):
        (job.input / f"{number}.jsonl").write_bytes(content)
        if runs > 1 or number == len(files) - 1:
            job.run().succeeded()
    table = job.table("out").writer()
    rows = duckdb_rows(table)
    assert len(rows) == 3_201
    wanted = [json.loads(record) for content in files for record in content.splitlines()]
    held: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        held.setdefault(str(row.get("Title")), []).append(row)
    left = [dict(row) for row in rows]
    for record in wanted:
        title = record.get("Title")
        named = [row for row in left if str(row["Title"]) in (str(title), json.dumps(title))]
        match = next((row for row in named if all(found_in(row, *pair) for pair in record_pairs(record))), None)
        assert match is not None, record
        left.remove(match)
    assert left == []
    job.table("out").audit()


def record_pairs(record: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(path[0], value) for path, value in scalars(record)]
