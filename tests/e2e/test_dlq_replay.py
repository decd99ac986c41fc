"""`dlq replay`: letters go on where they failed, through the pipeline as it is now, and no row comes twice.

Real processes; tables are counted by DuckDB in the files that their metadata names.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conveyord.storage.locks import owned
from tests.e2e.graph_rig import RECORDS, GraphJob, copies, sink
from tests.e2e.harness import CONVEYORD, Running, conveyord, line
from tests.e2e.test_kill_loop import SEED

BAD = 10  # every tenth record is poison, unless the test says otherwise
FAILS = f"SELECT id, name, CASE WHEN id % {BAD} = 3 THEN 1 / (id - id) ELSE id END AS n FROM input_data"
MENDED = "SELECT id, name, id AS n FROM input_data"
QUICK = {"commit": {"rows": 20, "every": "0.1s"}}
SLOW = {"commit": {"rows": 100_000, "every": "1h"}}
SMALL = {**RECORDS, "batch_rows": 10}


def sql(name: str, query: str) -> dict[str, Any]:
    return {"name": name, "type": "sql_transform", "query": query}


def starting(job: GraphJob, *flags: str | Path) -> Running:
    fixed = [str(CONVEYORD), "dlq", "replay", str(job.write()), "--data-dir", str(job.data_dir), "-o", "json"]
    return Running([*fixed, *map(str, flags)], job.home)


def replayed(job: GraphJob, *flags: str | Path, code: int = 0) -> dict[str, Any]:
    """The report of a replay."""
    ended = starting(job, *flags).wait()
    ended.orderly(code)
    (report,) = json.loads(ended.out)
    return report


def is_report(report: dict[str, Any], **counts: int) -> None:
    """Assert the counts of a report; what is not named is nought."""
    wanted = {"replayed": 0, "failed_again": 0, "waiting": 0, "unusable": 0, "held_back": 0, **counts}
    assert {key: report[key] for key in wanted} == wanted, report


def fill(job: GraphJob, content: bytes, name: str = "a.jsonl") -> None:
    (job.input / name).write_bytes(content)


def records(ids: Iterable[int], **more: Any) -> bytes:
    return b"".join(line(number, **more) for number in ids)


def three_ways(home: Path, **dlq: Any) -> GraphJob:
    """in -> calc (fails on every tenth) -> three sinks, of which one takes the even rows."""
    return GraphJob(
        home,
        sources=[SMALL],
        transforms=[sql("calc", FAILS)],
        sinks=[sink("quick", **QUICK), sink("slow", **SLOW), sink("even"), *dlq.pop("sinks", [])],
        edges=[
            ["in", "calc"],
            ["calc", "quick"],
            ["calc", "slow"],
            {"from": "calc", "to": "even", "when": "id % 2 = 0"},
        ],
        dlq=dlq,
    )


# -------------------------------------------------------------------- where letters go on


def test_letters_before_a_fan_out_reach_every_sink_once(tmp_path: Path) -> None:
    job = three_ways(tmp_path)
    job.transforms = [sql("calc", FAILS.replace("= 3", "IN (3, 4)"))]
    fill(job, records(range(100)))
    job.run().succeeded()
    assert len(job.letters()) == 20
    is_report(replayed(job), failed_again=20)
    assert {letter["attempts"] for letter in job.letters()} == {4}, "once for each sink"
    job.transforms = [sql("calc", MENDED)]
    is_report(replayed(job), replayed=20)
    job.hold(quick=range(100), slow=range(100), even=range(0, 100, 2))
    assert job.letters() == []
    is_report(replayed(job))
    assert job.run().succeeded()["rows_in"] == 0
    fill(job, records(range(100, 110)), "b.jsonl")
    job.run().succeeded()
    job.hold(quick=range(110), slow=range(110), even=range(0, 110, 2))
    job.table("quick").audit()


def test_letters_of_one_branch_reach_that_branch_only(tmp_path: Path) -> None:
    job = GraphJob(
        tmp_path,
        transforms=[sql("calc", FAILS)],
        sinks=[sink("one"), sink("other")],
        edges=[["in", "calc"], ["calc", "one"], ["in", "other"]],
        dlq={},
    )
    fill(job, records(range(50)))
    job.run().succeeded()
    job.transforms = [sql("calc", MENDED)]
    is_report(replayed(job), replayed=5)
    job.hold(one=range(50), other=range(50))


def renamed(*tables: str) -> list[dict[str, Any]]:
    """Sinks into these tables, under other names than these."""
    return [{**sink(table), "name": f"new_{table}"} for table in tables]


def test_a_sink_that_is_renamed_or_away_gets_its_letters_and_no_others(tmp_path: Path) -> None:
    """Letters know sinks by their tables."""
    job = GraphJob(tmp_path, transforms=[sql("calc", FAILS)], sinks=[sink("one"), sink("two")], dlq={})
    job.edges = [["in", "calc"], ["calc", "one"], ["calc", "two"]]
    fill(job, records(range(50)))
    job.run().succeeded()
    assert job.letters()[0]["lacked_by"] == [f"table ns.{name} of the catalog 'lake'" for name in ("one", "two")]
    job.transforms = [sql("calc", MENDED)]
    job.sinks, job.edges = renamed("two"), [["in", "calc"], ["calc", "new_two"]]
    report = replayed(job)
    is_report(report)
    assert report["absent"] == {"table ns.one of the catalog 'lake'": 5}
    job.hold(two=range(50))
    swapped = [{**sink("one"), "name": "two"}, {**sink("two"), "name": "one"}]
    job.sinks, job.edges = swapped, [["in", "calc"], ["calc", "one"], ["calc", "two"]]
    assert job.run().succeeded()["rows_in"] == 0
    is_report(replayed(job), replayed=5)
    job.hold(one=range(50), two=range(50))
    assert job.letters() == []


def test_a_sink_that_is_led_to_another_table_leaves_the_letters_of_the_first(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, transforms=[sql("calc", FAILS)], sinks=[sink("one")], dlq={})
    job.edges = [["in", "calc"], ["calc", "one"]]
    fill(job, records(range(50)))
    job.run().succeeded()
    job.transforms = [sql("calc", MENDED)]
    job.sinks = [{**sink("one"), "table": "ns.other"}]
    job.run().succeeded()
    job.hold(one=set(range(50)) - set(range(3, 50, 10)), other=range(50))
    report = replayed(job)
    is_report(report)
    assert list(report["absent"].values()) == [5]
    job.sinks = [sink("one")]
    is_report(replayed(job), replayed=5)
    job.hold(one=range(50), other=range(50))


def test_letters_go_with_the_positions_to_a_pipeline_under_another_name(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, transforms=[sql("calc", FAILS)], sinks=[sink("one"), sink("dead")], dlq={"sink": "dead"})
    job.edges = [["in", "calc"], ["calc", "one"]]
    fill(job, records(range(50)))
    job.run().succeeded()
    job.name = "renamed"
    job.run("--adopt", "default/job").succeeded()
    job.transforms = [sql("calc", MENDED)]
    is_report(replayed(job), replayed=5)
    job.hold(one=range(50))
    assert len(copies(job.table("dead"))) == 5


def test_a_catalog_of_the_same_name_in_another_place_is_another_sink(tmp_path: Path) -> None:
    """What is led elsewhere and back finds its letters again; another password is no other place."""

    def catalog(place: str, timeout: int) -> str:
        home = tmp_path / place
        home.mkdir(exist_ok=True)
        uri = f"sqlite:///{home}/catalog.db?timeout={timeout}"
        return f'[catalogs.store]\ntype = "sql"\nuri = "{uri}"\nwarehouse = "file://{home}"\n'

    job = GraphJob(tmp_path, transforms=[sql("calc", FAILS)], sinks=[sink("one", catalog="store")], dlq={})
    job.edges, job.settings = [["in", "calc"], ["calc", "one"]], catalog("here", 10)
    fill(job, records(range(50)))
    job.run().succeeded()
    job.transforms, job.settings = [sql("calc", MENDED)], catalog("there", 10)
    assert job.run().succeeded()["rows_out"] == 50
    job.settings = catalog("here", 20)
    is_report(replayed(job), replayed=5)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_letters_of_the_source_are_read_once_more_with_their_provenance(tmp_path: Path, form: str) -> None:
    job = GraphJob(tmp_path, sinks=[sink("all", provenance=True)], edges=[["in", "all"]], dlq={})
    if form == "csv":
        job.sources = [{"name": "in", "type": "file_csv", "path": "in/*"}]
        fill(
            job,
            b"id,name\n"
            + b"".join(b"%d,n%d\n" % (n, n) + (b"%d,a,b,c\n" % (n + 100)) * (n % 10 == 0) for n in range(50)),
        )
        edited = b"id,name\n100,mended\n"
    else:
        fill(job, b"".join(line(n) + (b'{"id": 10%d, "x": }\n' % n) * (n % 10 == 0) for n in range(50)))
        edited = b'{"id": 100, "name": "mended"}'
    job.run().succeeded()
    first, *others = job.letters()
    assert len(others) == 4
    is_report(replayed(job), failed_again=5)
    (tmp_path / "new").write_bytes(edited)
    ended = conveyord(
        "dlq", "edit", str(first["id"]), "--set-raw", tmp_path / "new", "--data-dir", job.data_dir, cwd=tmp_path
    )
    assert ended.code == 0, ended.err
    is_report(replayed(job), replayed=1, failed_again=4)
    job.hold(all=[*range(50), 100])
    assert job.table("all").sql("SELECT name, _offset FROM t WHERE id = 100") == [("mended", first["offset"])]
    assert {letter["attempts"] for letter in job.letters()} == {3}
    job.table("all").audit()


def test_letters_behind_conditions_leave_by_the_same_output(tmp_path: Path) -> None:
    fails = "CASE WHEN id % 10 IN (3, 4) THEN 1 / (id - id) ELSE 1 END = 1"
    job = GraphJob(
        tmp_path,
        transforms=[{"name": "keep", "type": "filter", "when": "id % 2 = 0"}],
        sinks=[sink("kept"), sink("plain"), sink("dropped"), sink("rest")],
        edges=[
            ["in", "keep"],
            ["in", "plain"],
            {"from": "keep", "to": "kept", "when": fails},
            {"from": "keep.dropped", "to": "dropped", "when": fails},
            {"from": "keep.dropped", "to": "rest", "otherwise": True},
        ],
        dlq={},
    )
    fill(job, records(range(100)))
    job.run().succeeded()
    assert {letter["stage"] for letter in job.letters()} == {"keep/edges", "keep.dropped/edges"}
    is_report(replayed(job), failed_again=20)
    job.edges[2]["when"] = "true"
    job.edges[3]["when"] = "id % 10 <> 3 OR id < 50"
    is_report(replayed(job, "--stage", "keep/edges"), replayed=10)
    is_report(replayed(job), replayed=10)
    even, odd = range(0, 100, 2), range(1, 100, 2)
    later = {n for n in odd if n % 10 == 3 and n >= 50}
    job.hold(kept=even, plain=range(100), dropped=set(odd) - later, rest=later)


def test_letters_before_a_diamond_come_together_again(tmp_path: Path) -> None:
    job = GraphJob(
        tmp_path,
        transforms=[
            sql("calc", FAILS),
            {"name": "halves", "type": "filter", "when": "id % 2 = 0"},
            sql("a", "SELECT id, 'a' AS way FROM input_data"),
            sql("b", FAILS.replace("= 3", "= 5").replace("name", "'b' AS way")),
            {"name": "join", "type": "passthrough"},
        ],
        sinks=[sink("all")],
        edges=[
            ["in", "calc"],
            ["calc", "halves"],
            ["halves", "a"],
            ["halves.dropped", "b"],
            ["a", "join"],
            ["b", "join"],
            ["join", "all"],
        ],
        dlq={},
    )
    fill(job, records(range(100)))
    job.run().succeeded()
    job.transforms[0] = sql("calc", MENDED)
    is_report(replayed(job), replayed=10, failed_again=10)
    job.transforms[3] = sql("b", "SELECT id, 'b' AS way FROM input_data")
    is_report(replayed(job), replayed=10)
    job.hold(all=range(100))
    assert job.table("all").sql("SELECT way, count(*) FROM t GROUP BY 1 ORDER BY 1") == [("a", 50), ("b", 50)]


def test_rows_of_one_record_that_fail_in_several_stages_are_all_kept(tmp_path: Path) -> None:
    """A row that goes on past its stage fails in the next; it must not take the place of a sibling there."""
    first = "SELECT id, items, 1 / (CASE WHEN items = 1 THEN id - id ELSE 1 END) AS one FROM input_data"
    second = "SELECT id * 10 + items AS id, 1 / (CASE WHEN items > 0 THEN id - id ELSE 1 END) AS two FROM input_data"
    job = GraphJob(
        tmp_path,
        transforms=[
            {"name": "rows", "type": "json_flatten", "lists": ["items"]},
            sql("first", first),
            sql("second", second),
        ],
        sinks=[sink("all")],
        edges=[["in", "rows"], ["rows", "first"], ["first", "second"], ["second", "all"]],
        dlq={},
    )
    fill(job, b"".join(b'{"id": %d, "items": [0, 1, 2, 3]}\n' % number for number in range(20)))
    job.run().succeeded()
    assert len(job.letters()) == 60
    job.hold(all=range(0, 200, 10))
    job.transforms[1] = sql("first", "SELECT id, items, 1 AS one FROM input_data")
    is_report(replayed(job, "--stage", "first"), failed_again=20)
    assert len(job.letters()) == 60, "none took another's place"
    job.transforms[2] = sql("second", "SELECT id * 10 + items AS id, 1 AS two FROM input_data")
    is_report(replayed(job), replayed=60)
    job.hold(all=[number * 10 + item for number in range(20) for item in range(4)])


# -------------------------------------------------------------------- what else can be


@pytest.mark.check  # finding so many poison rows takes a while
def test_letters_of_different_shapes_are_replayed_in_several_batches(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, transforms=[sql("calc", "SELECT *, 1 / (id - id) AS n FROM input_data")], dlq={})
    job.sinks, job.edges = [sink("all", **QUICK)], [["in", "calc"], ["calc", "all"]]
    job.transforms[0]["query"] = "SELECT *, CASE WHEN id >= 0 THEN 1 / (id - id) ELSE 0 END AS n FROM input_data"
    fill(job, records(range(1_300)))
    with_failures = {**RECORDS, "batch_rows": 500}  # more than a thousand poison rows in one batch are no poison
    job.sources = [with_failures]
    job.run().succeeded()
    fill(job, records(range(1_300, 1_400), extra={"deep": [1, 2]}), "b.jsonl")
    job.run().succeeded()
    job.transforms[0]["query"] = "SELECT *, id AS n FROM input_data"
    first, second = job.letters()[:2]
    is_report(replayed(job, "--id", str(first["id"]), "--id", str(second["id"])), replayed=2)
    is_report(replayed(job, "--code", "NO_SUCH_CODE"))
    is_report(replayed(job, "--since", "2200-01-01"))
    is_report(replayed(job, "--stage", "calc", "--since", "1h", "--code", first["code"]), replayed=1_398)
    job.hold(all=range(1_400))
    assert job.letters() == []


def test_damaged_letters_are_reported_and_stay_and_the_others_are_replayed(tmp_path: Path) -> None:
    job = three_ways(tmp_path)
    fill(job, records(range(100)))
    job.run().succeeded()
    segment = tmp_path / "data" / "dead-letters" / "segment-00000001.bin"
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0x40
    segment.write_bytes(content)
    (damaged,) = [letter for letter in job.letters() if letter["damage"]]
    job.transforms = [sql("calc", MENDED)]
    is_report(replayed(job), replayed=9, unusable=1)
    is_report(replayed(job), unusable=1)
    assert [letter["id"] for letter in job.letters()] == [damaged["id"]]
    lost = [number for number in range(3, 100, 10) if number not in set(job.table("quick").ids())]
    assert len(lost) == 1
    job.hold(quick=set(range(100)) - {*lost}, slow=set(range(100)) - {*lost})


def test_a_sink_that_fails_is_a_sentence_and_the_next_replay_goes_on(tmp_path: Path) -> None:
    job = three_ways(tmp_path)
    fill(job, records(range(100)))
    job.run().succeeded()
    job.transforms = [sql("calc", "SELECT *, id AS n FROM input_data")]
    job.sinks[1]["provenance"] = True  # which the rows of letters do not have
    ended = starting(job).wait()
    ended.failed("stage slow", "provenance is on", code=2)
    (report,) = json.loads(ended.out)
    assert report["error"]["stage"] == "slow"
    job.hold(quick=range(100), slow=[number for number in range(100) if number % BAD != 3])
    del job.sinks[1]["provenance"]
    is_report(replayed(job), replayed=10)
    job.hold(quick=range(100), slow=range(100), even=range(0, 100, 2))


def test_a_replay_is_refused_while_something_else_owns_the_directory(tmp_path: Path) -> None:
    job = three_ways(tmp_path)
    fill(job, records(range(20)))
    job.run().succeeded()
    with owned(job.data_dir):
        ended = starting(job).wait()
    ended.failed(f"is in use by process {os.getpid()}")
    is_report(replayed(job), failed_again=2)


def test_a_pipeline_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    job = three_ways(tmp_path)
    ended = starting(job, "--pipeline", "other").wait()
    assert ended.code == 2
    assert "no pipeline 'default/other' in" in ended.err


def test_copies_of_letters_stay_one_per_letter(tmp_path: Path) -> None:
    job = three_ways(tmp_path, sink="dead", sinks=[sink("dead")])
    fill(job, records(range(50)))
    job.run().succeeded()
    before = [copy["id"] for copy in copies(job.table("dead"))]
    assert before == [1, 2, 3, 4, 5]
    is_report(replayed(job), failed_again=5)
    job.run().succeeded()
    assert [copy["id"] for copy in copies(job.table("dead"))] == before
    job.transforms = [sql("calc", MENDED)]
    is_report(replayed(job), replayed=5)
    job.run().succeeded()
    assert [copy["id"] for copy in copies(job.table("dead"))] == before


def test_what_is_read_again_has_a_count_of_its_own(tmp_path: Path) -> None:
    job = three_ways(tmp_path)
    job.transforms = [sql("calc", "SELECT id, 10 / (id % 10 - 3) AS n FROM input_data")]
    for each in job.sinks:  # none takes anything, for `calc` drops the columns of the provenance
        each["provenance"] = True
    fill(job, records(range(20)))
    assert job.run().code == 2
    assert len(job.letters()) > 0
    job.run()
    assert len(job.letters()) > 0, "nothing has arrived yet"
    for each in job.sinks:
        del each["provenance"]
    job.transforms = [sql("calc", "SELECT id, id AS n FROM input_data")]
    job.run().succeeded()
    listed = conveyord("dlq", "list", "--data-dir", job.data_dir, cwd=tmp_path)
    assert "read again" in listed.err
    assert "purged" not in listed.err


def test_letters_of_a_file_that_was_archived_outlive_their_table_and_go_when_it_is_back(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, transforms=[sql("calc", FAILS)], sinks=[sink("one")], dlq={})
    job.edges = [["in", "calc"], ["calc", "one"]]
    fill(job, records(range(50)), "a.jsonl")
    fill(job, records(range(50, 60)), "b.jsonl")
    job.run().succeeded()
    (job.input / "a.jsonl").rename(tmp_path / "a.jsonl")
    table = job.table("one").writer()
    table.catalog.drop_table(table.name())
    table.catalog.close()
    job.transforms = [sql("calc", MENDED)]
    said = job.run()
    said.succeeded()
    assert "dead letters stay, as their records were not read again" in said.err
    job.hold(one=range(50, 60))
    is_report(replayed(job), waiting=5)
    (tmp_path / "a.jsonl").rename(job.input / "a.jsonl")
    job.run().succeeded()
    job.hold(one=range(60))
    assert job.letters() == []
    is_report(replayed(job))


def test_a_pipeline_with_tables_of_its_own_adopts_no_letters(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, transforms=[sql("calc", FAILS)], sinks=[sink("one")], dlq={})
    job.edges = [["in", "calc"], ["calc", "one"]]
    fill(job, records(range(50)))
    job.run().succeeded()
    job.name, job.sinks, job.transforms = "other", [{**sink("one"), "table": "ns.other"}], [sql("calc", MENDED)]
    job.run().succeeded()
    job.run("--adopt", "default/job").failed("every sink holds positions of its own, and none of default/job")
    assert {letter["pipeline"] for letter in job.letters()} == {"default/job"}


# -------------------------------------------------------------------- cut short


def many(home: Path) -> GraphJob:
    """calc fails on everything until it is mended, late on some of it until it is mended, and one sink is slow."""
    job = GraphJob(home, settings='[log]\nlevel = "debug"\n')
    job.sources = [{**RECORDS, "batch_rows": 500}]
    job.transforms = [sql("calc", FAILING), LATE]
    job.sinks = [sink("quick", **QUICK), sink("slow", **SLOW)]
    job.edges, job.dlq = [["in", "calc"], ["calc", "late"], ["late", "quick"], ["late", "slow"]], {}
    return job


def shapes(ids: range) -> bytes:
    """Records with a field of their own, so that letters of different runs are not replayed in one batch."""
    return records(ids, **{f"from_{ids.start}": 1})


LATE = sql("late", "SELECT *, 1 / (CASE WHEN id % 97 = 5 THEN id - id ELSE 1 END) AS m FROM input_data")
FAILING = "SELECT *, CASE WHEN id >= 0 THEN 1 / (id - id) END AS n FROM input_data"
PASSING = "SELECT *, id AS n FROM input_data"
LATE_MENDED = "SELECT *, 1 AS m FROM input_data"


def test_sigterm_commits_what_was_sent_and_the_next_replay_goes_on(tmp_path: Path) -> None:
    job = many(tmp_path)
    fill(job, shapes(range(300)))
    job.run().succeeded()
    job.transforms[0] = sql("calc", PASSING)
    running = starting(job)
    assert running.saw("committed")
    running.send(signal.SIGTERM)
    ended = running.wait()
    ended.orderly(0)
    assert "the same command goes on" in ended.err
    assert json.loads(ended.out)[0]["error"] is None
    assert job.table("quick").sql("SELECT count(*) FROM t")[0][0] > 0
    job.transforms[1] = sql("late", LATE_MENDED)
    replayed(job)
    job.hold(quick=range(300), slow=range(300))
    assert job.letters() == []


RUNS = 3  # with letters of as many shapes


def undone(job: GraphJob, *, is_queued: bool = False) -> int:
    """How many letters of `calc` are not replayed, or on their way, by SQLite alone."""
    index = job.data_dir / "dead-letters" / "index.db"
    if not index.exists():
        return 0
    queued = "AND sequence IS NOT NULL" if is_queued else ""
    query = f"SELECT count(DISTINCT letter) FROM claims JOIN letters ON letter = id WHERE stage = 'calc' {queued}"
    with closing(sqlite3.connect(f"file:{index}?mode=rw", uri=True, timeout=30)) as connection:
        return int(connection.execute(query).fetchone()[0])


def replay_loop(job: GraphJob, *, kills: int, letters: int) -> int:
    """Replay until so many were killed, with more letters whenever there are none left. Returns how many records."""
    faulthandler.cancel_dump_traceback_later()  # see test_kill_loop
    rng, done, count, half_done = random.Random(SEED), 0, 0, 0
    print(f"seed={SEED}")
    while done < kills:
        if not undone(job):
            job.transforms[0] = sql("calc", FAILING)
            for _ in range(RUNS):
                fill(job, shapes(range(count, count + letters // RUNS)), f"{count:09d}.jsonl")
                job.run().succeeded()
                count += letters // RUNS
            job.transforms[0] = sql("calc", PASSING)
        # What was mended is broken again, and the other way round.
        job.transforms[1] = rng.choice([sql("late", LATE_MENDED), LATE])
        running = starting(job)
        seen = rng.random() < 0.7 and running.saw("committed")
        if running.killed_after(rng.uniform(0.0, 0.05 if seen else 0.6)):
            done += 1
            half_done += undone(job, is_queued=True) > 0
    assert half_done or kills < 10
    job.transforms[1] = sql("late", LATE_MENDED)
    replayed(job)
    is_report(replayed(job))
    job.hold(quick=range(count), slow=range(count))
    assert job.letters() == []
    assert job.run().succeeded()["rows_in"] == 0
    for name in ("quick", "slow"):
        job.table(name).audit()
    print(f"kills: {done}, with letters queued: {half_done}, records: {count}")
    return count


@pytest.mark.check
@pytest.mark.timeout(900)
def test_every_letter_arrives_once_after_20_kills(tmp_path: Path) -> None:
    replay_loop(many(tmp_path), kills=20, letters=2_000)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_every_letter_arrives_once_after_150_kills(tmp_path: Path) -> None:
    replay_loop(many(tmp_path), kills=150, letters=2_000)
