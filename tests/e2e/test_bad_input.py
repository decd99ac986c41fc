"""Bad input through the real process: a sentence with place and remedy, nothing lost, and it goes on.

Every failing run here must end with exit code 1 (2 where the definition is wrong) and exactly one
sentence on stderr; after mending, every record is in the table once.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.e2e.harness import Job, line, lines

MIB = 1024 * 1024
RSS_MAX = 600 * MIB

BAD_LINES: dict[str, tuple[bytes, str]] = {
    "cut in the middle": (line(0)[:40] + b"\n", "not JSON"),
    "two objects": (line(0)[:-1] + line(0), "more than one JSON value"),
    "invalid UTF-8": (b'{"id": 0, "name": "caf\xe9"}\n', "not UTF-8"),
    "duplicate key": (b'{"id": 0, "name": "a", "name": "b"}\n', "twice"),
    "NaN": (b'{"id": 0, "value": NaN}\n', "NaN"),
    "an array": (b"[1, 2]\n", "object"),
    "a control character": (b'{"id": 0, "name": "a\x01b"}\n', "not JSON"),
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, source={"type": "file_jsonl", "path": "in/*", "block_bytes": 65536})


def with_bad_lines() -> list[bytes]:
    """Five thousand records; every five hundredth is one of BAD_LINES instead."""
    content = [line(number) for number in range(5_000)]
    for position, (bad, _) in enumerate(BAD_LINES.values()):
        content[500 * (position + 1)] = bad
    return content


@pytest.mark.check
def test_each_bad_record_stops_the_run_at_its_place_until_it_is_mended(job: Job) -> None:
    content = with_bad_lines()
    file = job.input / "a.jsonl"
    for position, (kind, (_, reason)) in enumerate(BAD_LINES.items()):
        file.write_bytes(b"".join(content))
        number = 500 * (position + 1)
        byte = sum(map(len, content[:number]))
        place = rf"a\.jsonl:{number + 1} \(byte {byte}\)"
        ended = job.run()
        ended.failed(place, reason)
        assert ended.summary["status"] == "failed", kind
        job.holds(range(number))
        content[number] = line(number)
    file.write_bytes(b"".join(content))
    job.run().succeeded()
    job.holds(range(5_000))
    job.audit()


def test_skip_bad_counts_and_logs_every_bad_record(job: Job) -> None:
    (job.input / "a.jsonl").write_bytes(b"".join(with_bad_lines()))
    ended = job.run("--skip-bad")
    assert ended.succeeded()["skipped"] == len(BAD_LINES)
    assert ended.err.count("passing over a bad record") == len(BAD_LINES)
    for position in range(len(BAD_LINES)):
        assert f"a.jsonl:{500 * (position + 1) + 1} (byte " in ended.err
    bad = {500 * (position + 1) for position in range(len(BAD_LINES))}
    job.holds(set(range(5_000)) - bad)
    assert job.audit()["fence"]["default/job"]["skipped"] == len(BAD_LINES)


def test_a_record_cut_at_the_end_of_the_file_is_read_once_it_is_whole(job: Job) -> None:
    file = job.input / "a.jsonl"
    file.write_bytes(lines(range(1_000)) + line(1_000)[:30])
    job.run().failed(r"a\.jsonl:1001 \(byte \d+\)", "not JSON")
    job.holds(range(1_000))
    file.write_bytes(lines(range(1_500)))
    job.run().succeeded()
    job.holds(range(1_500))


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl.gz", gzip.compress),
        pytest.param("a.jsonl.zst", zstandard.compress, marks=pytest.mark.check),
    ],
    ids=["gzip", "zstd"],
)
def test_a_truncated_file_gives_its_whole_records_and_goes_on_once_restored(
    job: Job, name: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(lines(range(30_000)))
    file = job.input / name
    file.write_bytes(whole[: len(whole) * 2 // 3])
    (job.input / "b.jsonl").write_bytes(lines(range(30_000, 30_100)))
    job.run().failed(re.escape(name), "ends early", "restore")
    held = job.ids()
    assert held == list(range(len(held)))
    skipping = job.run("--skip-bad")
    assert skipping.succeeded()["skipped"] == 1
    assert "passing over the rest of a file" in skipping.err
    job.holds([*range(len(held)), *range(30_000, 30_100)])
    file.write_bytes(whole)
    job.run().succeeded()
    job.holds(range(30_100))
    job.audit()


def test_empty_files_are_no_failure_and_hold_nothing_up(job: Job) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        (job.input / name).touch()
    (job.input / "d.jsonl.gz").write_bytes(gzip.compress(b""))
    (job.input / "e.jsonl").write_bytes(b"\n\n  \n")
    assert job.run().succeeded()["rows_in"] == 0
    (job.input / "f.jsonl").write_bytes(lines(range(100)))
    job.run().succeeded()
    (job.input / "a.jsonl").write_bytes(lines(range(100, 200)))
    job.run().succeeded()
    job.holds(range(200))


def test_a_line_of_100_megabytes_is_refused_in_bounded_memory_and_can_be_passed_over(job: Job) -> None:
    job.source = {"type": "file_jsonl", "path": "in/*"}
    long = b'{"id": 1, "name": "' + b"x" * (100 * MIB) + b'"}\n'
    file = job.input / "a.jsonl"
    file.write_bytes(line(0) + long + line(2))
    ended = job.run()
    ended.failed(r"a\.jsonl:2 \(byte \d+\)", "longer than max_record_bytes \\(16777216\\)", "raise that option or mend")
    assert ended.rss_bytes < RSS_MAX
    job.holds([0])
    skipping = job.run("--skip-bad")
    assert skipping.succeeded()["skipped"] == 1
    assert skipping.rss_bytes < RSS_MAX
    job.holds([0, 2])


@pytest.mark.check
def test_a_line_of_100_megabytes_is_read_if_it_is_allowed(job: Job) -> None:
    job.source = {"type": "file_jsonl", "path": "in/*", "max_record_bytes": "128MiB"}
    (job.input / "a.jsonl").write_bytes(line(0) + line(1, name="x" * (100 * MIB)) + line(2))
    job.run().succeeded()
    assert job.sql("SELECT id, length(name) FROM t WHERE id = 1") == [(1, 100 * MIB)]
    job.holds(range(3))


def test_values_that_do_not_fit_their_column_are_findable_beside_it(job: Job) -> None:
    huge = 2**70
    content = [
        line(0, mixed=1),
        line(1, mixed="one"),
        line(2, mixed=1.5),
        line(3, mixed=huge),
        line(4, mixed=True),
        line(5, mixed={"deep": 1}),
        line(6, mixed=None),
    ]
    (job.input / "a.jsonl").write_bytes(b"".join(content))
    job.run().succeeded()
    job.holds(range(7))
    found = findable(job, "mixed")
    assert found[0] == {"1"} or found[0] == {"1.0"}
    assert found[1] == {"one"}
    assert found[2] == {"1.5"}
    assert found[3] == {str(huge)}
    assert found[4] <= {"True", "true"}
    assert found[4]
    assert found[5], "an object where a number was must be found"
    assert found[6] == set()


@pytest.mark.check
def test_a_number_turns_text_beyond_the_sample_and_over_runs(job: Job) -> None:
    (job.input / "a.jsonl").write_bytes(lines(range(100), mixed=7))
    job.run().succeeded()
    (job.input / "b.jsonl").write_bytes(lines(range(100, 200), mixed="seven") + lines([200], mixed=2**64))
    job.run().succeeded()
    job.holds(range(201))
    found = findable(job, "mixed")
    assert found[5] == {"7"}
    assert found[150] == {"seven"}
    assert found[200] == {str(2**64)}


def findable(job: Job, field: str) -> dict[int, set[str]]:
    """The values that are not null in the column `field` and those beside it, as text, by id."""
    columns = [c.name for c in job.static_table().schema().columns if c.name.split("__")[0] == field]
    rows: dict[int, set[str]] = {}
    have = {name for name, *_ in job.sql("DESCRIBE t")}
    selected = ", ".join(f'"{name}"' for name in columns if name in have)
    for identity, *values in job.sql(f"SELECT id, {selected} FROM t"):
        rows[identity] = {str(value) for value in values if value is not None}
    return rows


@pytest.mark.check
def test_a_column_that_first_appears_after_a_million_rows_is_null_before(job: Job) -> None:
    job.source = {"type": "file_jsonl", "path": "in/*"}
    rows = 1_000_000
    old = b"".join(b'{"id":%d,"name":"n"}\n' % number for number in range(rows))
    new = b"".join(b'{"id":%d,"late":{"a":%d}}\n' % (number, number) for number in range(rows, rows + 10))
    (job.input / "a.jsonl").write_bytes(old + new)
    ended = job.run()
    assert ended.succeeded()["rows_in"] == rows + 10
    assert ended.rss_bytes < RSS_MAX
    counts = "SELECT count(*), count(DISTINCT id), count(late), min(id) FILTER (late IS NOT NULL) FROM t"
    assert job.sql(counts) == [(rows + 10, rows + 10, 10, rows)]
    scanned = job.static_table().scan(row_filter=f"id > {rows - 3}").to_arrow().sort_by("id")
    assert scanned["late"].to_pylist()[:4] == [None, None, {"a": rows}, {"a": rows + 1}]


# ------------------------------------------------------------------ CSV


def csv_job(job: Job) -> Job:
    job.source = {"type": "file_csv", "path": "in/*", "block_bytes": 65536}
    return job


@pytest.mark.check
def test_a_ragged_csv_row_stops_the_run_at_its_place_until_it_is_mended(job: Job) -> None:
    csv_job(job)
    rows = [b"id,name,value\n", *(b"%d,n%d,%d.5\n" % (n, n, n) for n in range(3_000))]
    file = job.input / "a.csv"
    whole = b"".join(rows)
    short, long = b"1000,n1000\n", b"2000,n2000,2000.5,more\n"
    file.write_bytes(b"".join([*rows[:1001], short, *rows[1002:2001], long, *rows[2002:]]))
    job.run().failed(r"a\.csv:1002 \(byte \d+\)", "3")
    job.holds(range(1_000))
    file.write_bytes(b"".join([*rows[:2001], long, *rows[2002:]]))
    job.run().failed(r"a\.csv:2002 \(byte \d+\)", "3")
    job.holds(range(2_000))
    file.write_bytes(whole)
    job.run().succeeded()
    job.holds(range(3_000))
    job.audit()


@pytest.mark.check
def test_a_last_line_that_grows_after_it_was_read_is_refused_not_read_as_two(job: Job) -> None:
    """`1,12` without a line end was a whole record; when it becomes `1,123`, the table holds a wrong 12."""
    csv_job(job)
    file = job.input / "a.csv"
    file.write_bytes(b"id,value\n0,7\n1,12")
    job.run().succeeded()
    file.write_bytes(b"id,value\n0,7\n1,123\n2,9\n")
    job.run().failed(r"a\.csv", "without a line end", "byte 17")
    file.write_bytes(b"id,value\n0,7\n1,12\r\n2,9\n")
    job.run().succeeded()
    assert job.sql("SELECT id, value FROM t ORDER BY 1") == [(0, 7), (1, 12), (2, 9)]


def test_skip_bad_counts_ragged_csv_rows(job: Job) -> None:
    csv_job(job)
    (job.input / "a.csv").write_bytes(b"id,name\n0,a\n1\n2,b,c\n3,d\n")
    ended = job.run("--skip-bad")
    assert ended.succeeded()["skipped"] == 2
    assert ended.err.count("passing over a bad record") == 2
    job.holds([0, 3])


# ------------------------------------------------------------------ nothing to read


@pytest.mark.parametrize(
    ("path", "reasons"),
    [
        ("nowhere/*.jsonl", ["matches no file", "looked from", "correct the path"]),
        ("in", ["'in' is a directory", r"in/\*"]),
    ],
    ids=["no file matches", "a directory"],
)
def test_a_path_without_files_is_refused(job: Job, path: str, reasons: list[str]) -> None:
    job.source["path"] = path
    job.run().failed(*reasons, code=2)
    assert job.metadata_location() is None


@pytest.mark.check
def test_an_unreadable_file_is_named(job: Job) -> None:
    (job.input / "a.jsonl").write_bytes(lines(range(10)))
    (job.input / "b.jsonl").symlink_to("/proc/self/mem")  # root may open anything, but not read this
    ended = job.run()
    ended.failed(r"/proc/\d+/mem", "reading it failed", "check the disk")
    job.run("--skip-bad").failed(r"/proc/\d+/mem", "reading it failed")
    (job.input / "b.jsonl").unlink()
    (job.input / "b.jsonl").write_bytes(lines(range(10, 20)))
    job.run().succeeded()
    job.holds(range(20))


@pytest.mark.check
def test_a_definition_that_is_wrong_ends_with_two_and_touches_nothing(job: Job) -> None:
    wrong: list[dict[str, Any]] = [
        {"type": "file_jsonl", "path": "in/*", "blok_bytes": 1},
        {"type": "file_jsonl"},
        {"type": "file_jsnl", "path": "in/*"},
    ]
    (job.input / "a.jsonl").write_bytes(lines(range(10)))
    for source in wrong:
        job.source = source
        ended = job.run()
        assert ended.code == 2, json.dumps(source)
        assert "job.yaml:" in ended.err
        assert "Traceback" not in ended.err
    assert not job.data_dir.exists()
