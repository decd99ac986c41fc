"""Records and rows that fail for ever, as a user meets them: kept with their bytes, counted, copied once."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.graph_rig import RECORDS, GraphJob, copies, sink
from tests.e2e.harness import line, lines

BROKEN = {
    3: b'{"id": 3, "name": "cut',
    7: b'{"id": 7} trailing',
    11: b"\xff\xfe not text",
    15: b"[1, 2]",
}


def divided(at: str) -> str:
    """A query that fails on the rows for which `at` is true."""
    return f"SELECT id, name, CASE WHEN {at} THEN 1 / (id - id) ELSE id END AS n FROM input_data"


def calculating(home: Path, *, at: str) -> GraphJob:
    calc = {"name": "calc", "type": "sql_transform", "query": divided(at)}
    edges = [["in", "calc"], ["calc", "out"]]
    return GraphJob(home, transforms=[calc], sinks=[sink("out")], edges=edges, dlq={})


def offsets(content: bytes) -> list[int]:
    """Where each line of `content` begins."""
    starts = [0]
    for text in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(text))
    return starts


def test_bad_json_is_kept_with_its_bytes_and_its_offset_and_the_rest_arrives(tmp_path: Path) -> None:
    job = GraphJob(tmp_path, sinks=[sink("out", provenance=True)], edges=[["in", "out"]], dlq={})
    content = b"".join(BROKEN[number] + b"\n" if number in BROKEN else line(number) for number in range(100))
    (job.input / "a.jsonl").write_bytes(content)
    summary = job.run().succeeded()
    assert (summary["rows_in"], summary["dead_letters"], summary["skipped"]) == (100, 4, 0)
    job.hold(out=set(range(100)) - set(BROKEN))
    starts = offsets(content)
    found = {letter["offset"]: letter for letter in job.letters()}
    assert set(found) == {starts[number] for number in BROKEN}
    for number, raw in BROKEN.items():
        letter = found[starts[number]]
        assert (letter["stage"], letter["source"], letter["partition"]) == ("in", "in", str(job.input / "a.jsonl"))
        assert letter["raw"] == raw.decode("utf-8", "replace") or letter["raw_base64"]
        assert letter["row"] is None
    report = job.table("out").audit()
    assert (report["rows"], report["basis"]) == (96, "provenance")
    assert job.run().succeeded()["rows_in"] == 0
    assert len(job.letters()) == 4


def test_ragged_csv_rows_are_kept_below_their_header(tmp_path: Path) -> None:
    source = {"name": "in", "type": "file_csv", "path": "in/*"}
    job = GraphJob(tmp_path, sources=[source], sinks=[sink("out")], edges=[["in", "out"]], dlq={})
    rows = [f"{number},name {number}" for number in range(50)]
    rows[20], rows[30] = '20,"a, b",too,many', "30"
    content = "\n".join(["id,name", *rows, ""]).encode()
    (job.input / "a.csv").write_bytes(content)
    assert job.run().succeeded()["dead_letters"] == 2
    job.hold(out=set(range(50)) - {20, 30})
    starts = offsets(content)
    found = {letter["offset"]: letter["raw"] for letter in job.letters()}
    assert found == {starts[21]: f"id,name\n{rows[20]}", starts[31]: f"id,name\n{rows[30]}"}


def test_poison_rows_are_found_one_by_one_with_record_row_and_reason(tmp_path: Path) -> None:
    job = calculating(tmp_path, at="id % 400 = 7")
    content = lines(range(1000))
    (job.input / "a.jsonl").write_bytes(content)
    summary = job.run().succeeded()
    assert (summary["rows_in"], summary["dead_letters"], summary["filtered"]) == (1000, 3, 0)
    bad = [7, 407, 807]
    job.hold(out=set(range(1000)) - set(bad))
    starts = offsets(content)
    letters = sorted(job.letters(), key=lambda letter: letter["offset"])
    assert [letter["offset"] for letter in letters] == [starts[number] for number in bad]
    for number, letter in zip(bad, letters, strict=True):
        assert letter["raw"].encode() == line(number).rstrip(b"\n")
        assert letter["row"]["id"] == number
        assert letter["stage"] == "calc"
        assert "ivide by zero" in letter["message"]
    report = job.table("out").audit()
    assert (report["rows"], report["dead_letters"]) == (997, 3)


def test_a_condition_that_fails_on_a_row_sends_the_row_to_the_dead_letters(tmp_path: Path) -> None:
    """No branch gets it, not even one without a condition: the letter stands for the row."""
    job = GraphJob(tmp_path, sinks=[sink("odd"), sink("even"), sink("all")], dlq={})
    fails = "CASE WHEN id % 50 = 4 THEN 1 / (id - id) ELSE id % 2 END = 1"
    job.edges = [{"from": "in", "to": "odd", "when": fails}, {"from": "in", "to": "even", "otherwise": True}]
    job.edges += [["in", "all"]]
    (job.input / "a.jsonl").write_bytes(lines(range(200)))
    assert job.run().succeeded()["dead_letters"] == 4
    good = [number for number in range(200) if number % 50 != 4]
    job.hold(odd=[number for number in good if number % 2], even=[n for n in good if n % 2 == 0], all=good)
    assert {letter["row"]["id"] for letter in job.letters()} == {4, 54, 104, 154}
    assert {letter["stage"] for letter in job.letters()} == {"in/edges"}


def test_without_dlq_the_first_bad_row_stops_the_run_and_names_it(tmp_path: Path) -> None:
    job = calculating(tmp_path, at="id = 77")
    job.dlq = None
    (job.input / "a.jsonl").write_bytes(lines(range(200)))
    job.run().failed("stage calc: .*a.jsonl.*[Dd]ivide by zero")
    assert not (job.data_dir / "dead-letters").exists()


@pytest.mark.check
def test_a_poison_row_in_each_of_a_thousand_batches(tmp_path: Path) -> None:
    job = calculating(tmp_path, at="id % 16 = 13")
    job.sources = [{**RECORDS, "batch_rows": 16}]
    job.sinks.append(sink("dead"))
    job.dlq = {"sink": "dead"}
    (job.input / "a.jsonl").write_bytes(lines(range(16_000)))
    summary = job.run().succeeded()
    assert summary["dead_letters"] == 1000
    job.hold(out=[number for number in range(16_000) if number % 16 != 13])
    assert sorted(letter["row"]["id"] for letter in job.letters()) == [*range(13, 16_000, 16)]
    assert sorted(json.loads(row["raw"])["id"] for row in copies(job.table("dead"))) == [*range(13, 16_000, 16)]
    report = job.table("out").audit()
    assert (report["rows"], report["dead_letters"]) == (15_000, 1000)


@pytest.mark.check
def test_copies_reach_the_dlq_sink_once_whatever_happens_between(tmp_path: Path) -> None:
    """Killed when copies are committed and the records they stand for are not: these are read and fail again."""
    job = calculating(tmp_path, at="id % 10 = 3")
    job.sources = [{**RECORDS, "batch_rows": 50}]
    job.sinks = [sink("out", commit={"rows": 10**6, "every": "1h"}), sink("dead", commit={"rows": 1, "every": "0.1s"})]
    job.dlq = {"sink": "dead"}
    (job.input / "a.jsonl").write_bytes(lines(range(3000)))
    for _ in range(2):
        running = job.start()
        assert running.saw("committed")
        running.send(signal.SIGKILL)
        running.wait()
        assert job.table("out").snapshot_id() is None
    job.run().succeeded()
    bad = [*range(3, 3000, 10)]
    job.hold(out=set(range(3000)) - set(bad))
    assert Counter(json.loads(row["raw"])["id"] for row in copies(job.table("dead"))) == Counter(bad)
    assert sorted(letter["row"]["id"] for letter in job.letters()) == bad
    assert job.run().succeeded()["rows_in"] == 0
    assert len(copies(job.table("dead"))) == len(bad)
    job.table("dead").audit()


def test_a_query_that_is_mended_takes_back_the_letters_of_records_read_again(tmp_path: Path) -> None:
    """The run was killed before its commit, so those records come once more, and now they are rows."""
    job = calculating(tmp_path, at="id % 10 = 3")
    job.sources = [{**RECORDS, "batch_rows": 50}]
    job.sinks = [sink("out", commit={"rows": 10**6, "every": "1h"})]
    (job.input / "a.jsonl").write_bytes(lines(range(6_000)))
    running = job.start()
    assert running.until(lambda: job.letter_count() >= 20)
    running.send(signal.SIGKILL)
    running.wait()
    job.transforms[0]["query"] = "SELECT id, name, 1 AS n FROM input_data"
    assert job.run().succeeded()["dead_letters"] == 0
    job.hold(out=range(6_000))
    assert job.letters() == []
