"""Records that a table cannot take become dead letters of the sink, and reach it once it can."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.graph_rig import GraphJob, columns, copies, sink
from tests.e2e.harness import Ended, conveyord, line, lines
from tests.e2e.test_dlq_replay import is_report, records, replayed

FIELDS = 5  # of a record of `line`
WIDE = 42


def narrow(home: Path, **options: Any) -> GraphJob:
    """in -> out, whose table may have no more columns than plain records need."""
    return GraphJob(home, sinks=[sink("out", columns_max=FIELDS, **options)], edges=[["in", "out"]], dlq={})


def fill(job: GraphJob, *wide: int, name: str = "a.jsonl") -> None:
    """A hundred records, some of which have a key of their own."""
    content = [line(n, **{f"k{n}": n}) if n in wide else line(n) for n in range(100)]
    (job.input / name).write_bytes(b"".join(content))


def test_one_row_too_wide_for_the_table_becomes_a_letter_and_the_others_arrive(tmp_path: Path) -> None:
    job = narrow(tmp_path)
    fill(job, WIDE)
    summary = job.run().succeeded()
    assert (summary["rows_in"], summary["rows_out"], summary["dead_letters"]) == (100, 99, 1)
    job.hold(out=set(range(100)) - {WIDE})
    assert len(columns(job.table("out"))) == FIELDS
    (letter,) = job.letters()
    assert (letter["stage"], letter["code"], letter["row"]["id"]) == ("out", "BATCH_FAILED", WIDE)
    assert letter["raw"].encode() == line(WIDE, **{f"k{WIDE}": WIDE}).rstrip(b"\n")
    assert "columns_max is 5" in letter["message"]
    report = job.table("out").audit()
    assert (report["rows"], report["dead_letters"]) == (99, 1)
    assert job.run().succeeded()["rows_in"] == 0
    assert len(job.letters()) == 1


@pytest.mark.parametrize("provenance", [False, True])
def test_letters_of_a_sink_reach_it_once_when_its_table_may_grow(tmp_path: Path, provenance: bool) -> None:
    job = narrow(tmp_path, provenance=provenance)
    limit = FIELDS + 3 * provenance
    job.sinks[0]["columns_max"] = limit
    wide = [3, WIDE, 99]
    fill(job, *wide)
    assert job.run().succeeded()["dead_letters"] == 3
    is_report(replayed(job), failed_again=3)
    assert {letter["attempts"] for letter in job.letters()} == {2}
    job.hold(out=set(range(100)) - {*wide})
    job.table("out").audit()
    job.sinks[0]["columns_max"] = limit + 2
    is_report(replayed(job), replayed=2, failed_again=1)
    job.sinks[0]["columns_max"] = limit + 3
    is_report(replayed(job), replayed=1)
    is_report(replayed(job))
    job.hold(out=range(100))
    assert job.table("out").sql("SELECT id, k3, k42, k99 FROM t WHERE id = 42") == [(42, None, 42, None)]
    assert job.letters() == []
    job.table("out").audit()
    (job.input / "b.jsonl").write_bytes(records(range(100, 110)))
    job.run().succeeded()
    job.hold(out=range(110))


def test_a_row_that_one_table_cannot_take_still_reaches_the_others(tmp_path: Path) -> None:
    job = narrow(tmp_path)
    job.sinks.append(sink("wide"))
    job.edges.append(["in", "wide"])
    fill(job, WIDE)
    assert job.run().succeeded()["dead_letters"] == 1
    job.hold(out=set(range(100)) - {WIDE}, wide=range(100))
    job.sinks[0]["columns_max"] = FIELDS + 1
    is_report(replayed(job), replayed=1)
    job.hold(out=range(100), wide=range(100))
    job.table("wide").audit()


def test_records_without_any_field_and_no_table_are_read_again_by_every_run(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, sinks=[sink("out")], edges=[["in", "out"]], dlq={})
    (job.input / "a.jsonl").write_bytes(b"{}\n{}\n")
    for _ in range(2):
        assert job.run().succeeded()["dead_letters"] == 2
        assert job.letter_count() == 2
    is_report(replayed(job), waiting=2)


def test_a_table_for_copies_that_cannot_take_them_stops_the_run_instead_of_feeding_itself(tmp_path: Path) -> None:
    job = narrow(tmp_path)
    job.sinks.append(sink("dead", columns_max=3))
    job.dlq = {"sink": "dead"}
    fill(job, WIDE)
    job.run().failed("table ns.dead: the rows have 13 columns")
    assert len(job.letters()) == 1
    job.sinks[1]["columns_max"] = 13
    job.run().succeeded()
    job.hold(out=set(range(100)) - {WIDE})
    (copy,) = copies(job.table("dead"))
    assert copy["stage"] == "out"


def test_without_dlq_a_row_too_wide_stops_the_run_and_is_named(tmp_path: Path) -> None:
    job = narrow(tmp_path)
    job.dlq = None
    fill(job, WIDE)
    job.run().failed(r"a\.jsonl bytes 0 to \d+: table ns\.out: the rows have 6 columns \('k42' is the newest\)")
    assert job.table("out").metadata_location() is None


# -------------------------------------------------------------------- catalogs that refer to secrets


def with_catalog(home: Path, **properties: str) -> GraphJob:
    job = GraphJob(home, sinks=[sink("out")], edges=[["in", "out"]])
    job.sinks[0]["catalog"] = {"type": "sql", "warehouse": f"file://{home}/data/warehouse", **properties}
    (job.input / "a.jsonl").write_bytes(lines(range(10)))
    (home / "data" / "warehouse").mkdir(parents=True)
    return job


def test_an_inline_catalog_may_refer_to_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/data/catalog.db"
    monkeypatch.setenv("CAT_URI", uri)
    job = with_catalog(tmp_path, uri="env:CAT_URI")
    job.run().succeeded()
    job.hold(out=range(10))
    (tmp_path / "uri").write_text(f"{uri}\n")
    job.sinks[0]["catalog"]["uri"] = f"file:{tmp_path}/uri"
    (job.input / "b.jsonl").write_bytes(lines(range(10, 20)))
    ended = job.run("--dry-run")
    assert ended.code == 0, ended.err
    assert uri not in ended.out + ended.err


@pytest.mark.parametrize("reference", ["env:CAT_URI_UNSET", "file:/no/such/file"])
def test_a_reference_of_an_inline_catalog_that_leads_nowhere_is_named(tmp_path: Path, reference: str) -> None:
    assert "CAT_URI_UNSET" not in os.environ
    job = with_catalog(tmp_path, uri=reference, token="s3cr3t")
    ended = job.run()
    ended.failed(r"sink 'out': catalog\.uri: the secret ", reference.partition(":")[2], code=2)
    assert "s3cr3t" not in shown(job, ended)


def shown(job: GraphJob, ended: Ended) -> str:
    """All that a run and the commands that show a definition say."""
    drawn = conveyord("graph", job.write(), cwd=job.home)
    return ended.out + ended.err + drawn.out + drawn.err
