"""A data directory that was moved, copied or damaged: each is named with its remedy, and nothing is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Ended, Job, conveyord, lines, local

RECORDS = 200


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A table of 100 records, and 100 more to read."""
    job = Job(tmp_path)
    (job.input / "a.jsonl").write_bytes(lines(range(100)))
    job.run().succeeded()
    (job.input / "b.jsonl").write_bytes(lines(range(100, RECORDS)))
    return job


def query(job: Job) -> Ended:
    return conveyord("query", "SELECT * FROM ns.t", "--data-dir", job.data_dir, "-o", "csv", cwd=job.home)


def code(ended: Ended) -> str:
    return str(ended.summary["error"]["code"])


def test_a_moved_data_directory_is_told_from_a_silent_catalog(job: Job) -> None:
    former, job.data_dir = job.data_dir, job.home / "else where"
    former.rename(job.data_dir)
    moved = rf"it was moved here from {former}, .*move it back, or leave a link there: ln -s '{job.data_dir}' {former}"
    run = job.run()
    run.failed(moved)
    assert code(run) == "REFUSED"
    query(job).failed(moved)
    conveyord("audit", "ns.t", "--data-dir", job.data_dir, cwd=job.home).failed(moved)
    assert not former.exists()
    former.symlink_to(job.data_dir)
    job.run().succeeded()
    job.holds(range(RECORDS))
    job.audit()


def test_a_copy_of_a_data_directory_is_not_written_because_its_files_are_the_originals(job: Job) -> None:
    original, job.data_dir = job.data_dir, job.home / "copy"
    shutil.copytree(original, job.data_dir)
    job.run().failed(f"it is a copy of {original}, .*run in the original")
    job.data_dir = original
    job.run().succeeded()
    job.holds(range(RECORDS))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"garbage" * 3000, "file is not a database"),
        (lambda content: content[:5000], "malformed"),
        (lambda content: content[:4096] + b"\xff" * (len(content) - 4096), "malformed"),
        (lambda content: b"", "the file is empty"),
    ],
    ids=["garbage", "truncated", "pages", "empty"],
)
def test_a_damaged_catalog_is_corrupt_and_says_what_to_restore(
    job: Job, damage: Callable[[bytes], bytes], reason: str
) -> None:
    catalog = job.data_dir / "catalog.db"
    whole = catalog.read_bytes()
    catalog.write_bytes(damage(whole))
    sentence = rf"{catalog}: the catalog is damaged \(.*{reason}.*\); restore the file from a backup"
    run = job.run()
    run.failed(sentence)
    assert code(run) == "CORRUPT"
    query(job).failed(sentence)
    catalog.write_bytes(whole)
    job.holds(range(100))
    assert not job.orphans()


def test_a_query_names_the_data_file_that_is_missing(job: Job) -> None:
    [task] = job.static_table().scan().plan_files()
    file = Path(local(task.file.file_path))
    file.unlink()
    query(job).failed(rf"^the data file {file} is missing, .*restore it from a backup")
    ended = conveyord("query", "SELECT count(*) FROM ns.t", "--data-dir", job.data_dir, "-o", "json", cwd=job.home)
    assert json.loads(ended.out)["error"]["code"] == "CORRUPT"
    file.write_bytes(b"PAR1 cut short")
    query(job).failed("^a table could not be read: .*; conveyord audit TABLE names each data file that is damaged$")


def test_names_that_are_one_dotted_name_are_refused_with_their_place(tmp_path: Path) -> None:
    job = Job(tmp_path)
    file = job.input / "a.jsonl"
    file.write_bytes(b'{"a.b":1,"a":{"b":5}}\n{"id":1}\n')
    job.run().failed(rf"{file} bytes 0 to 31: two columns have the same dotted name .*a\.b.*rename", code=2)
    file.write_bytes(b'{"a_b":1,"a":{"b":5}}\n{"id":1}\n')
    assert job.run().succeeded()["rows_in"] == 2
