"""Parts of `conveyord doctor` that decide by themselves."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

import pytest

from conveyord.daemon.doctor.directory import file_system_of, holder_of
from conveyord.daemon.doctor.packages import misfit


@pytest.mark.parametrize("requirement", ["trio", "trio<99,>=0.1", "trio!=0.1", "click>=8", "pydantic[email]>2,<99.0.0"])
def test_what_is_installed_and_allowed_fits(requirement: str) -> None:
    assert misfit(requirement) is None


@pytest.mark.parametrize(
    ("requirement", "says"),
    [
        ("trio<0.1", "trio is .*, <0.1 is needed"),
        ("trio>=0.1,<0.2", "trio is .*, >=0.1,<0.2 is needed"),
        ("trio==0.1.0", "trio is .*, ==0.1.0 is needed"),
        ("there-is-no-such-package>=1", "there-is-no-such-package is missing, >=1 is needed"),
        ("there-is-no-such-package", "there-is-no-such-package is missing, any version is needed"),
    ],
)
def test_what_is_missing_or_of_another_version_is_told(requirement: str, says: str) -> None:
    found = misfit(requirement)
    assert found is not None
    assert re.fullmatch(says, found)


def test_versions_are_compared_by_number_and_length_does_not_matter() -> None:
    from conveyord.daemon.doctor.packages import _meets

    assert _meets((1, 10), ">", (1, 9))
    assert _meets((3,), "==", (3, 0, 0))
    assert not _meets((2, 9, 9), ">=", (3,))


def test_the_file_system_of_proc_is_proc_and_of_a_directory_that_of_its_mount(tmp_path: Path) -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(tmp_path) == file_system_of(tmp_path / ".")


def test_who_holds_a_directory_is_seen_without_its_lock(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with (tmp_path / "lock").open("w") as lock:
        assert holder_of(tmp_path) is None
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert holder_of(tmp_path) == os.getpid()
    assert holder_of(tmp_path) is None
