"""Finds and reads the files of a set of definitions."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from conveyord.engine.problems import Problem
from conveyord.engine.yaml_source import FILE_BYTES_MAX

FILES_MAX = 10_000  # of one set; a directory with more is not one of definitions
SET_BYTES_MAX = 64 * 1024 * 1024  # of one set: it is held in memory until all of it is checked
SUFFIXES = (".yaml", ".yml")


def read_files(paths: Sequence[Path], problems: list[Problem]) -> dict[str, bytes]:
    """The contents of all files, by the path to show. What cannot be read becomes a problem. Blocking.

    A directory stands for the YAML files below it; hidden ones, pipes and devices are passed over. A file
    that is named twice is read once.
    """
    contents: dict[str, bytes] = {}
    seen: set[str] = set()
    total = 0
    for path in _files(paths, problems):
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        if len(seen) > FILES_MAX:
            problems.append(Problem(str(path), 0, 0, f"more than {FILES_MAX} files in one set; name fewer"))
            break
        content = _read(path, problems)
        if content is None:
            continue
        total += len(content)
        if total > SET_BYTES_MAX:
            message = f"the files up to this one have {total} bytes, the limit is {SET_BYTES_MAX}; name fewer files"
            problems.append(Problem(str(path), 0, 0, message))
            break
        contents[str(path)] = content
    return contents


def _files(paths: Sequence[Path], problems: list[Problem]) -> Iterator[Path]:
    for path in paths:
        if not stat.S_ISDIR(_mode(path)):
            yield path
            continue
        found = False
        for below in _below(path, problems):
            found = True
            yield below
        if not found:
            message = f"the directory holds no file that ends in {' or '.join(SUFFIXES)}"
            problems.append(Problem(str(path), 0, 0, message))


def _below(directory: Path, problems: list[Problem]) -> Iterator[Path]:
    def remember(error: OSError) -> None:
        reason = error.strerror or type(error).__name__
        problems.append(Problem(str(error.filename), 0, 0, f"cannot be read: {reason}"))

    for folder, folders, names in os.walk(directory, onerror=remember):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                path = Path(folder) / name
                if _mode(path) == 0 or stat.S_ISREG(_mode(path)):
                    yield path


def _mode(path: Path) -> int:
    """What is there; 0 if that cannot be told, as of a link to nowhere: reading it says what is wrong."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _read(path: Path, problems: list[Problem]) -> bytes | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe waits for whoever writes to it
            message = "is no regular file; write the definition to one and name that"
            problems.append(Problem(str(path), 0, 0, message))
            return None
        size = status.st_size
        if size <= FILE_BYTES_MAX:
            with path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
            if len(content) <= FILE_BYTES_MAX:
                return content
            size = len(content)
    except OSError as error:
        problems.append(Problem(str(path), 0, 0, f"cannot be read: {error.strerror or type(error).__name__}"))
        return None
    message = f"the file has {size} bytes, the limit is {FILE_BYTES_MAX}; split the file"
    problems.append(Problem(str(path), 0, 0, message))
    return None
