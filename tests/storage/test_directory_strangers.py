"""JSON lines files that no commit explains: only what a crashed run itself wrote is taken back."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conveyord.core.errors import Refused
from conveyord.storage.commit_log import STATE_DIRECTORY, state_directory
from conveyord.storage.directory_audit import audit_directory
from tests.storage.directory_rig import KINDS, PARTITION, PIPELINE, ROWS, Run, files, offsets

REPOSITORY = Path(__file__).resolve().parents[2]
DIRECTORIES = ("lines", "zstd")
LINES = (*DIRECTORIES, "single")
THEIRS = b'{"offset": -1}\n'


def committed(root: Path, kind: str, commits: int, **options: str) -> None:
    run = Run(root, kind, **options).open()
    while run.next_offset < commits * ROWS:
        run.commit_next()
    run.close()


def crashed(root: Path, kind: str, **options: str) -> None:
    """A run that wrote rows to files, and was killed before it committed them."""
    run = Run(root, kind, **options).open()
    run.write(run.next_offset, rows=9)
    if run.driver._descriptor is not None:
        run.driver._flush()
    run.die()


def target(root: Path, kind: str) -> Path:
    return root / "rows.jsonl" if kind == "single" else root


def refused(root: Path, kind: str, match: str, **options: str) -> None:
    """The next run stops, and leaves every byte as it is."""
    before = {path: path.read_bytes() for path in files(root)}
    run = Run(root, kind, **options)
    with pytest.raises(Refused, match=match):
        run.open()
    run.close()
    assert {path: path.read_bytes() for path in files(root)} == before


def test_a_file_that_another_program_made_after_a_commit_without_rows_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, "single").open()
    run.commit_next(rows=0)
    run.close()
    (tmp_path / "rows.jsonl").write_bytes(THEIRS)
    refused(tmp_path, "single", "exists already.*knows of no commit to it; move it away")


def test_a_file_that_was_taken_away_and_brought_back_is_refused(tmp_path: Path) -> None:
    committed(tmp_path, "single", 2)
    path = tmp_path / "rows.jsonl"
    path.rename(tmp_path.parent / f"{tmp_path.name}.away")
    run = Run(tmp_path, "single").open()
    run.commit_next(rows=0)
    run.close()
    (tmp_path.parent / f"{tmp_path.name}.away").rename(path)
    refused(tmp_path, "single", "exists already.*knows of no commit to it")


@pytest.mark.parametrize("commits", [0, 2])
def test_a_file_that_took_the_place_of_one_that_a_crashed_run_began_is_refused(tmp_path: Path, commits: int) -> None:
    if commits:
        committed(tmp_path, "single", commits)
        (tmp_path / "rows.jsonl").unlink()
    crashed(tmp_path, "single")
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rows.jsonl").write_bytes(THEIRS * 1_000)
    refused(tmp_path, "single", "exists already")
    (tmp_path / "rows.jsonl").unlink()
    committed(tmp_path, "single", commits + 1)
    assert offsets(tmp_path) == list(range(commits * ROWS, (commits + 1) * ROWS))


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("has_crashed", [False, True])
def test_a_longer_file_in_the_place_of_a_committed_one_is_refused(
    tmp_path: Path, kind: str, *, has_crashed: bool
) -> None:
    committed(tmp_path, kind, 1)
    if has_crashed:
        crashed(tmp_path, kind)
    path = min(files(tmp_path))
    path.unlink()
    path.write_bytes(THEIRS * 1_000)
    refused(tmp_path, kind, "knows only of")


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("has_crashed", [False, True])
def test_a_committed_file_that_was_written_over_is_refused(tmp_path: Path, kind: str, *, has_crashed: bool) -> None:
    """It is the same file to the file system; only what stands in it tells."""
    committed(tmp_path, kind, 1)
    (path,) = files(tmp_path)
    theirs = THEIRS * path.stat().st_size
    if has_crashed:
        crashed(tmp_path, kind)
    path.write_bytes(theirs if has_crashed else theirs[: path.stat().st_size])
    refused(tmp_path, kind, "end otherwise than when they were committed")


@pytest.mark.parametrize("kind", LINES)
def test_what_another_program_appended_is_refused(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 1)
    path = max(files(tmp_path))
    path.write_bytes(path.read_bytes() + THEIRS)
    refused(tmp_path, kind, "appended to or replaced")


def test_one_file_is_refused_to_a_second_pipeline_when_it_opens(tmp_path: Path) -> None:
    two = Run(tmp_path, "single", pipeline="ns/two").open()
    refused(tmp_path, "single", "rows.jsonl: another pipeline writes to this file at the moment", pipeline="ns/one")
    two.commit_next()
    refused(tmp_path, "single", "another pipeline writes to this file", pipeline="ns/one")
    two.close()
    assert offsets(tmp_path) == list(range(ROWS))
    refused(tmp_path, "single", "knows of no commit to it", pipeline="ns/one")
    committed(tmp_path, "single", 3, pipeline="ns/two")
    assert offsets(tmp_path) == list(range(3 * ROWS))


def test_one_file_is_refused_to_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.storage.directory_rig import Run\n"
        "Run(Path(sys.argv[1]), 'single', pipeline='ns/one').open()"
    )
    run = Run(tmp_path, "single", pipeline="ns/two").open()
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=False,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    run.close()
    assert "Refused" in ended.stderr
    assert "another pipeline writes to this file" in ended.stderr


@pytest.mark.parametrize("kind", LINES)
def test_pipelines_share_a_directory_and_different_files_in_it(tmp_path: Path, kind: str) -> None:
    run = Run(tmp_path, kind, pipeline="ns/one").open()
    run.commit_next()
    other = Run(tmp_path, "lines", pipeline="ns/two").open()
    other.commit_next()
    other.close()
    run.close()


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    refused(tmp_path, kind, f"{tmp_path}: the file system there makes no hard links .* path on another file system")
    monkeypatch.undo()
    committed(tmp_path, kind, 1)
    assert offsets(tmp_path) == list(range(ROWS))


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("later", [1, 2, 6])
@pytest.mark.parametrize("is_running", [False, True])
def test_older_manifests_that_were_restored_stop_the_run(
    tmp_path: Path, kind: str, later: int, *, is_running: bool
) -> None:
    """Also a backup that was taken while a run wrote, claims and all."""
    root, backup = tmp_path / "out", tmp_path / "backup"
    committed(root, kind, 1)
    run = Run(root, kind).open()
    if is_running:
        run.write(run.next_offset)
        if run.driver._descriptor is not None:
            run.driver._flush()
    shutil.copytree(root / STATE_DIRECTORY, backup)
    run.close()
    committed(root, kind, 1 + later)
    shutil.rmtree(root / STATE_DIRECTORY)
    shutil.copytree(backup, root / STATE_DIRECTORY)
    refused(root, kind, "exists already|knows only of")
    assert offsets(root) == list(range((1 + later) * ROWS))


@pytest.mark.parametrize("kind", LINES)
def test_a_whole_backup_is_gone_on_from(tmp_path: Path, kind: str) -> None:
    committed(tmp_path / "out", kind, 3)
    shutil.copytree(tmp_path / "out", tmp_path / "restored")
    committed(tmp_path / "restored", kind, 5)
    assert offsets(tmp_path / "restored") == list(range(5 * ROWS))


@pytest.mark.parametrize("kind", LINES)
def test_claims_are_let_go_when_a_run_ends(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 3)
    assert list(tmp_path.rglob("begun/*")) == []
    assert {path.stat().st_nlink for path in files(tmp_path)} == {1}


# ------------------------------------------------------------------------------ renamed pipelines


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("commits", [1, 3])
def test_a_pipeline_that_was_killed_and_renamed_writes_no_row_twice(tmp_path: Path, kind: str, commits: int) -> None:
    committed(tmp_path, kind, commits, pipeline="ns/old")
    if kind in LINES:
        crashed(tmp_path, kind, pipeline="ns/old")
    committed(tmp_path, kind, commits + 3, pipeline="ns/new", former="ns/old")
    assert offsets(tmp_path) == list(range((commits + 3) * ROWS))


@pytest.mark.parametrize("kind", LINES)
def test_strangers_under_a_former_name_are_refused(tmp_path: Path, kind: str) -> None:
    root, backup = tmp_path / "out", tmp_path / "backup"
    committed(root, kind, 1, pipeline="ns/old")
    shutil.copytree(root / STATE_DIRECTORY, backup)
    committed(root, kind, 4, pipeline="ns/old")
    shutil.rmtree(root / STATE_DIRECTORY)
    shutil.copytree(backup, root / STATE_DIRECTORY)
    refused(root, kind, "exists already|knows only of", pipeline="ns/new", former="ns/old")


@pytest.mark.parametrize("first", ["parquet", "single"])
@pytest.mark.parametrize("was_opened", [False, True])
def test_two_sinks_of_a_renamed_pipeline_in_one_directory_both_go_on(
    tmp_path: Path, first: str, *, was_opened: bool
) -> None:
    kinds = (first, "single" if first == "parquet" else "parquet")
    for kind in kinds:
        committed(tmp_path, kind, 2, pipeline="ns/old")
    if was_opened:
        Run(tmp_path, "parquet", pipeline="ns/new").open().close()
    for _ in range(2):
        runs = [Run(tmp_path, kind, pipeline="ns/new", former="ns/old").open() for kind in kinds]
        for run in runs:
            run.commit_next()
        for run in runs:
            run.close()
    assert offsets(tmp_path) == sorted([*range(4 * ROWS)] * 2)
    assert not state_directory(tmp_path, "ns/old").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_audit_counts_the_files_of_former_names(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 2, pipeline="ns/oldest")
    Run(tmp_path, kind, pipeline="ns/old", former="ns/oldest").open().close()
    report = audit_directory(target(tmp_path, kind))
    assert (report.ok, report.findings, report.rows) == (True, (), 2 * ROWS)
    committed(tmp_path, kind, 4, pipeline="ns/old", former="ns/oldest")
    committed(tmp_path, kind, 6, pipeline="ns/new", former="ns/old")
    report = audit_directory(target(tmp_path, kind))
    assert (report.ok, report.findings, report.rows) == (True, (), 6 * ROWS)


# ------------------------------------------------------------------------------ what the audit says


@pytest.mark.parametrize("kind", LINES)
def test_what_a_crash_left_is_told_apart_from_what_others_did(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 1)
    crashed(tmp_path, kind)
    findings = " ".join(audit_directory(target(tmp_path, kind)).findings)
    assert "the next run cuts it off" in findings or "the next run of the pipeline deletes it" in findings
    assert "stops at it" not in findings
    assert "somebody added" not in findings


def test_files_of_directories_whose_manifests_are_older_stop_the_next_run(tmp_path: Path) -> None:
    committed(tmp_path, "lines", 4)
    for path in sorted(state_directory(tmp_path, PIPELINE).glob("commit-*.json"))[1:]:
        path.unlink()
    assert any("stops at it" in finding for finding in audit_directory(tmp_path).findings)


def test_a_file_whose_manifests_are_gone_is_told_how_to_vouch_for(tmp_path: Path) -> None:
    committed(tmp_path, "single", 1)
    shutil.rmtree(tmp_path / STATE_DIRECTORY)
    (finding,) = audit_directory(tmp_path / "rows.jsonl").findings
    assert "holds no manifest of it" in finding
    assert "moved or deleted, and must be restored" in finding
    assert f"audit {tmp_path}" in finding


def test_positions_are_those_of_the_last_commit_after_a_crash_that_left_claims(tmp_path: Path) -> None:
    committed(tmp_path, "lines", 3)
    crashed(tmp_path, "lines")
    run = Run(tmp_path, "lines").open()
    assert run.positions[PARTITION].offset == 3 * ROWS
    run.close()
    assert offsets(tmp_path) == list(range(3 * ROWS))
