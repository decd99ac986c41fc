"""A disk that is full or read-only: a sentence, nothing lost, and the run goes on once there is space."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyord.core.errors import StorageFull
from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lake.fileio import DurableFileIO, DurableOutputStream
from tests.storage.lake_rig import NAME, Run, assert_exactly_once, files_on_disk, files_reachable


def test_a_write_to_a_full_device_is_storage_full_with_the_path_and_the_remedy() -> None:
    stream = DurableOutputStream(Path("/dev/full"), top=None, overwrite=True)
    stream.write(b"x")
    with pytest.raises(StorageFull, match=r"/dev/full: No space left on device; free space"):
        stream.close()
    assert stream.closed


def test_an_abandoned_file_is_closed_without_hiding_why(tmp_path: Path) -> None:
    output = DurableFileIO({"warehouse": f"file://{tmp_path}"}).new_output(f"file://{tmp_path}/a/b/c")
    with pytest.raises(ZeroDivisionError), output.create() as stream:
        stream.write(b"half")
        _ = 1 // 0
    assert stream.closed


def test_a_file_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    output = DurableFileIO().new_output(str(tmp_path / "x"))
    with output.create() as stream:
        stream.write(b"one")
    with pytest.raises(FileExistsError):
        output.create()
    with output.create(overwrite=True) as stream:
        stream.write(b"two!")
    assert len(output) == 4
    with output.to_input_file().open() as written:
        assert written.read() == b"two!"


def test_other_schemes_are_left_to_pyarrow() -> None:
    io = DurableFileIO({"s3.endpoint": "http://127.0.0.1:1", "s3.region": "us-east-1"})
    assert type(io.new_output("s3://bucket/key")).__name__ == "PyArrowFile"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("this test mounts a small file system and needs root: run `make check` as root")
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(mount_point)], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "-l", str(mount_point)], check=True)


def commit_until_full(run: Run) -> None:
    for _ in range(500):
        run.commit_next()


@pytest.mark.check
def test_a_disk_that_fills_up_while_batches_land_leaves_a_whole_table_to_go_on_from(small_disk: Path) -> None:
    run = Run(small_disk).open()
    with pytest.raises(StorageFull, match=r"free space|Free space"):
        commit_until_full(run)
    run.close()
    table = open_embedded(small_disk).load_table(NAME)
    landed = assert_exactly_once(table)
    assert landed > 3
    assert files_reachable(table) <= files_on_disk(table)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    again = Run(small_disk).open()
    again.commit_next()
    assert assert_exactly_once(open_embedded(small_disk).load_table(NAME)) == landed + 1
    again.close()


@pytest.mark.check
def test_a_read_only_data_directory_is_refused_by_a_sentence(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageFull, match="read-only"):
        open_embedded(small_disk)
    with pytest.raises(StorageFull, match="(?i)read-only|unable to open"):
        Run(small_disk, catalog=object())  # type: ignore[arg-type]
