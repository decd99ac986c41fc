"""Whether Python and the packages are those that conveyord was made for."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from conveyord.daemon.doctor.findings import Finding

PYTHON_MIN = (3, 11)
# Before it, two connections that make a checkpoint at once can damage a file in WAL mode.
SAFE_SQLITE = (3, 51, 3)

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)")
_LIMIT = re.compile(r"(==|>=|<=|<|>|!=)\s*([0-9][0-9.]*)")


def look_at_packages() -> Iterator[Finding]:
    """Blocking, for a moment."""
    running = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < PYTHON_MIN:
        yield Finding("python", "wrong", f"Python {running} runs this", "use Python 3.11 or later")
    else:
        yield Finding("python", "ok", f"Python {running}")
    try:
        wanted = requires("conveyord") or []
    except PackageNotFoundError:
        yield Finding("packages", "info", "conveyord is run from its source, so its packages cannot be compared")
    else:
        yield _of_packages(wanted)
    yield from _of_sqlite()


def _of_packages(wanted: list[str]) -> Finding:
    needed = [one for one in wanted if "extra ==" not in one]
    wrong = [problem for one in needed if (problem := misfit(one)) is not None]
    if wrong:
        return Finding(
            "packages",
            "wrong",
            "; ".join(wrong),
            "install conveyord anew into an environment of its own, so that versions are those it was tested with",
        )
    return Finding("packages", "ok", f"{len(needed)} packages are there in versions that belong together")


def misfit(requirement: str) -> str | None:
    """Why what is installed does not meet `name>=1,<2`; None if it does."""
    parts = _REQUIREMENT.match(requirement)
    assert parts is not None, requirement
    name, limits = parts[1], parts[2].strip()
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is missing, {limits or 'any version'} is needed"
    if all(_meets(_numbers(found), sign, _numbers(limit)) for sign, limit in _LIMIT.findall(limits)):
        return None
    return f"{name} is {found}, {limits} is needed"


def _meets(found: tuple[int, ...], sign: str, limit: tuple[int, ...]) -> bool:
    size = max(len(found), len(limit))
    one, other = (numbers + (0,) * (size - len(numbers)) for numbers in (found, limit))
    return {
        "==": one == other,
        "!=": one != other,
        ">=": one >= other,
        "<=": one <= other,
        ">": one > other,
        "<": one < other,
    }[sign]


def _numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _of_sqlite() -> Iterator[Finding]:
    import apsw

    ours = apsw.sqlite_lib_version()
    if _numbers(ours) < SAFE_SQLITE:
        yield Finding("sqlite", "wrong", f"apsw brings SQLite {ours}", "install apsw 3.54 or later")
    else:
        yield Finding(
            "sqlite", "ok", f"SQLite {ours} of apsw for the log, {sqlite3.sqlite_version} of Python for the state"
        )
