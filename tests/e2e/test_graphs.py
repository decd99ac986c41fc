"""Graphs as a user runs them: branches, meetings, several pipelines; every row where it belongs, once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.graph_rig import RECORDS, GraphJob, copies, sink, tree
from tests.e2e.harness import conveyord, lines

OFTEN = {"rows": 100, "every": "0.1s"}
SMALL_BATCHES = {**RECORDS, "batch_rows": 100}


def given(job: GraphJob, count: int, *, name: str = "a.jsonl", first: int = 0) -> None:
    (job.input / name).write_bytes(lines(range(first, first + count)))


def conditions(home: Path) -> GraphJob:
    """Every row to `all`; a part of them by zone to one, two, or none of three others; the rest elsewhere."""
    return GraphJob(
        home,
        transforms=[{"name": "keep", "type": "filter", "when": "id % 10 <> 3"}],
        sinks=[sink(name) for name in ("all", "low", "even", "rest", "dropped")],
        edges=[
            ["in", "all"],
            ["in", "keep"],
            {"from": "keep", "to": "low", "when": "id < 500"},
            {"from": "keep", "to": "even", "when": "id % 2 = 0"},
            {"from": "keep", "to": "rest", "otherwise": True},
            ["keep.dropped", "dropped"],
        ],
    )


def test_rows_go_every_way_that_takes_them_and_otherwise_the_rest(tmp_path: Path) -> None:
    job = conditions(tmp_path)
    given(job, 2000)
    summary = job.run().succeeded()
    kept = [number for number in range(2000) if number % 10 != 3]
    expected = {
        "all": range(2000),
        "low": [number for number in kept if number < 500],
        "even": [number for number in kept if number % 2 == 0],
        "rest": [number for number in kept if number >= 500 and number % 2],
        "dropped": range(3, 2000, 10),
    }
    job.hold(**expected)
    assert summary["rows_in"] == 2000
    assert summary["filtered"] == 0, "every row was taken by some edge"
    assert {one["name"]: one["rows"] for one in summary["sinks"]} == {name: len(ids) for name, ids in expected.items()}
    for name in expected:
        job.table(name).audit()
    assert job.run().succeeded()["rows_in"] == 0
    job.hold(**expected)


def test_rows_that_no_edge_takes_are_counted_as_filtered(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, sinks=[sink("low")], edges=[{"from": "in", "to": "low", "when": "id < 40"}])
    given(job, 100)
    assert job.run().succeeded()["filtered"] == 60
    job.hold(low=range(40))
    job.table("low").audit()


def two_sources(home: Path) -> GraphJob:
    (home / "other").mkdir()
    other = {"name": "other", "type": "file_jsonl", "path": "other/*", "batch_rows": 70}
    job = GraphJob(home, sources=[SMALL_BATCHES, other], sinks=[sink("both", provenance=True, commit=OFTEN)])
    job.edges = [["in", "both"], ["other", "both"]]
    given(job, 3000)
    (home / "other" / "b.jsonl").write_bytes(lines(range(3000, 4500)))
    return job


def test_two_sources_into_one_table_each_go_on_from_their_own_fence(tmp_path: Path) -> None:
    job = two_sources(tmp_path)
    assert job.run().succeeded()["rows_in"] == 4500
    job.hold(both=range(4500))
    given(job, 500, name="c.jsonl", first=4500)
    assert job.run().succeeded()["rows_in"] == 500
    job.hold(both=range(5000))
    report = job.table("both").audit()
    assert report["basis"] == "provenance"
    sources = job.table("both").sql("SELECT _source, count(*) FROM t GROUP BY 1 ORDER BY 1")
    assert sources == [("in", 3500), ("other", 1500)]


@pytest.mark.check
def test_a_meeting_of_two_sources_survives_a_kill(tmp_path: Path) -> None:
    job = two_sources(tmp_path)
    running = job.start()
    assert running.saw("committed", times=3)
    running.send(signal.SIGKILL)
    running.wait()
    job.run().succeeded()
    job.hold(both=range(4500))
    job.table("both").audit()


def test_a_diamond_gives_every_row_once_whatever_its_way(tmp_path: Path) -> None:
    """Two branches by condition, changed differently, that meet again before one sink."""
    query = "SELECT id, name || '{}' AS name FROM input_data"
    job = GraphJob(
        tmp_path,
        sources=[SMALL_BATCHES],
        transforms=[{"name": name, "type": "sql_transform", "query": query.format(name)} for name in ("odd", "even")],
        sinks=[sink("one", commit=OFTEN)],
        edges=[
            {"from": "in", "to": "odd", "when": "id % 2 = 1"},
            {"from": "in", "to": "even", "otherwise": True},
            ["odd", "one"],
            ["even", "one"],
        ],
    )
    given(job, 5000)
    running = job.start()
    assert running.saw("committed", times=2)
    running.send(signal.SIGKILL)
    running.wait()
    job.run().succeeded()
    job.hold(one=range(5000))
    wrong = "SELECT count(*) FROM t WHERE name NOT LIKE CASE WHEN id % 2 = 1 THEN '%odd' ELSE '%even' END"
    assert job.table("one").sql(wrong) == [(0,)]
    job.table("one").audit()


@pytest.mark.check
def test_a_row_that_goes_both_ways_of_a_diamond_arrives_twice_by_design(tmp_path: Path) -> None:
    job = GraphJob(
        tmp_path,
        transforms=[{"name": name, "type": "passthrough"} for name in ("left", "right")],
        sinks=[sink("one")],
        edges=[["in", "left"], ["in", "right"], ["left", "one"], ["right", "one"]],
    )
    given(job, 300)
    job.run().succeeded()
    assert job.table("one").ids() == sorted([*range(300)] * 2)


# ------------------------------------------------------------------ sinks that are not equally far


@pytest.mark.parametrize(
    ("number", "on_slow"),
    [
        (signal.SIGKILL, "block"),
        pytest.param(signal.SIGKILL, "spill", marks=pytest.mark.check),
        pytest.param(signal.SIGTERM, "block", marks=pytest.mark.check),
        (signal.SIGTERM, "spill"),
    ],
    ids=["killed-block", "killed-spill", "stopped-block", "stopped-spill"],
)
def test_each_sink_goes_on_from_where_it_is(tmp_path: Path, number: signal.Signals, on_slow: str) -> None:
    sinks = [sink("quick", commit=OFTEN, provenance=True), sink("last", commit={"rows": 10**6, "every": "1h"})]
    edges: list[Any] = [["in", "quick"], {"from": "in", "to": "last", "on_slow": on_slow}]
    job = GraphJob(tmp_path, sources=[SMALL_BATCHES], sinks=sinks, edges=edges)
    given(job, 20_000)
    running = job.start("--channel-capacity", "1")
    assert running.saw("committed", times=5)
    running.send(number)
    ended = running.wait()
    ahead = job.table("quick").ids()
    assert 500 <= len(ahead) < 20_000
    if number == signal.SIGKILL:
        assert job.table("last").snapshot_id() is None
    else:
        ended.orderly(0)
        job.hold(last=ahead)
    given(job, 1000, name="b.jsonl", first=20_000)
    sinks[0]["commit"] = {}  # the rest at once
    job.run().succeeded()
    job.hold(quick=range(21_000), last=range(21_000))
    assert job.table("quick").audit()["basis"] == "provenance"
    assert "_source" not in [name for (name,) in job.table("last").sql("SELECT column_name FROM (DESCRIBE t)")]
    assert not job.spilled()


def test_a_sink_that_comes_later_gets_everything_and_the_others_nothing_twice(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, sinks=[sink("one")], edges=[["in", "one"]])
    given(job, 1000)
    job.run().succeeded()
    job.sinks.append(sink("two"))
    job.edges.append({"from": "in", "to": "two", "when": "id % 2 = 0"})
    job.run().succeeded()
    job.hold(one=range(1000), two=range(0, 1000, 2))


# ------------------------------------------------------------------ several pipelines


def sharing(home: Path) -> tuple[GraphJob, GraphJob]:
    """Two pipelines that begin alike. The second fails from record 2500 on, unless its query is mended."""
    clean = {"name": "clean", "type": "filter", "when": "id % 10 <> 3"}
    failing = "SELECT id, CASE WHEN id >= 2500 THEN 1 / (id - id) ELSE 1 END AS n FROM input_data"
    first = GraphJob(home, sources=[SMALL_BATCHES], transforms=[clean], sinks=[sink("good", commit=OFTEN)], name="a")
    first.edges = [["in", "clean"], ["clean", "good"]]
    second = GraphJob(home, sources=[SMALL_BATCHES], sinks=[sink("bad", commit=OFTEN)], name="b")
    second.transforms = [clean, {"name": "calc", "type": "sql_transform", "query": failing}]
    second.edges = [["in", "clean"], ["clean", "calc"], ["calc", "bad"]]
    given(first, 5000)
    return first, second


def test_of_two_pipelines_that_share_a_source_one_fails_and_the_other_ends_well(tmp_path: Path) -> None:
    first, second = sharing(tmp_path)
    ended = first.run(second.write())
    ended.failed("default/b: stage calc: .*[Dd]ivide by zero")
    good, bad = ended.summary
    assert (good["pipeline"], good["status"], good["error"]) == ("default/a", "succeeded", None)
    assert (bad["pipeline"], bad["status"], bad["error"]["stage"]) == ("default/b", "failed", "calc")
    kept = [number for number in range(5000) if number % 10 != 3]
    first.hold(good=kept)
    held = first.table("bad").ids()
    assert held == kept[: len(held)]
    second.transforms[1]["query"] = "SELECT id, 1 AS n FROM input_data"
    ended = first.run(second.write())
    ended.orderly(0)
    assert [one["status"] for one in ended.summary] == ["succeeded", "succeeded"]
    first.hold(good=kept, bad=kept)
    for name in ("good", "bad"):
        first.table(name).audit()
    assert [one["rows_in"] for one in first.run(second.write()).summary] == [0, 0]


@pytest.mark.check
def test_pipelines_that_ran_together_go_on_alone(tmp_path: Path) -> None:
    first, second = sharing(tmp_path)
    second.transforms[1]["query"] = "SELECT id, 1 AS n FROM input_data"
    running = first.start(second.write())
    assert running.saw("committed", times=4)
    running.send(signal.SIGKILL)
    running.wait()
    second.run().succeeded()
    first.run().succeeded()
    kept = [number for number in range(5000) if number % 10 != 3]
    first.hold(good=kept, bad=kept)


def test_a_pipeline_that_is_not_enabled_stays_out(tmp_path: Path) -> None:
    first, second = sharing(tmp_path)
    ended = first.run(second.write(enabled=False))
    ended.succeeded()
    assert "default/b is not enabled and stays out" in ended.err
    assert first.table("bad").metadata_location() is None
    alone = conveyord("run", tmp_path / "b.yaml", "--data-dir", first.data_dir, cwd=tmp_path)
    alone.orderly(2)
    assert "there is no pipeline to run" in alone.err


# ------------------------------------------------------------------ refused, and tried without moving anything


def test_two_sinks_of_one_pipeline_into_one_table_are_refused(tmp_path: Path) -> None:
    sinks = [sink("one"), {**sink("two"), "table": "ns.one"}]
    job = GraphJob(tmp_path, sinks=sinks, edges=[["in", "one"], ["in", "two"]])
    given(job, 10)
    job.run().failed("the sinks 'one' and 'two' both write to .*ns.one.*; lead both branches to one sink", code=2)
    assert job.table("one").metadata_location() is None


def test_a_source_that_was_renamed_is_refused_with_its_former_name(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, sinks=[sink("one")], edges=[["in", "one"]])
    given(job, 10)
    job.run().succeeded()
    job.sources[0]["name"], job.edges = "other", [["other", "one"]]
    job.run().failed("positions of the source 'in'.*give the source its former name")
    job.hold(one=range(10))


@pytest.mark.parametrize("fresh", [True, pytest.param(False, marks=pytest.mark.check)], ids=["fresh", "after a run"])
def test_a_dry_run_moves_nothing(tmp_path: Path, fresh: bool) -> None:
    job = conditions(tmp_path)
    job.dlq = {"sink": "dead"}
    job.sinks.append(sink("dead"))
    given(job, 500)
    if not fresh:
        job.run().succeeded()
        given(job, 500, name="b.jsonl", first=500)
    before = tree(job.data_dir / "warehouse"), [job.table(one["name"]).metadata_location() for one in job.sinks]
    ended = job.run("--dry-run")
    ended.orderly(0)
    assert ended.summary == {"pipelines": ["default/job"], "ok": True, "problems": []}
    after = tree(job.data_dir / "warehouse"), [job.table(one["name"]).metadata_location() for one in job.sinks]
    assert after == before
    assert not (job.data_dir / "dead-letters").exists()
    assert not (job.data_dir / "spill").exists()
    assert job.run().succeeded()["rows_in"] == 500, "nothing was passed over either"
    assert not copies(job.table("dead"))


def test_a_dry_run_names_what_is_missing_by_stage(tmp_path: Path) -> None:
    job = conditions(tmp_path)
    job.sources[0]["path"] = "nowhere/data.jsonl"
    ended = job.run("--dry-run")
    assert ended.code in (1, 2)
    assert not ended.summary["ok"]
    [problem] = ended.summary["problems"]
    assert problem["stage"] == "in"
    assert "nowhere/data.jsonl" in problem["message"]
    assert "error: stage in: " in ended.err
    job.sources[0]["path"] = "in/*"
    given(job, 10)
    job.sinks[1]["catalog"] = "prod"
    job.run("--dry-run").failed("prod", code=2)
    job.settings = '[catalogs.prod]\ntype = "rest"\nuri = "http://127.0.0.1:9"\n'
    job.run("--dry-run").failed("prod")
    assert job.table("all").metadata_location() is None


def test_a_stage_that_fails_is_named(tmp_path: Path) -> None:
    job = conditions(tmp_path)
    job.transforms[0]["when"] = "nowhere > 5"
    given(job, 10)
    ended = job.run()
    ended.failed("stage keep: .*nowhere", code=2)
    assert ended.summary["error"]["stage"] == "keep"
    job.transforms[0]["when"] = "id > 5"
    job.edges[2]["when"] = "idd < 500"
    job.run().failed("keep -> low|keep to low", "idd", "did you mean|id", code=2)
