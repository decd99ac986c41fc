"""What the machine lets a process have."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

from conveyord.core.units import format_bytes, format_seconds
from conveyord.daemon.doctor.findings import Finding
from conveyord.runtime.notify import Notifier

OPEN_FILES_MIN = 1024  # or connections are refused that the node's own limits would let in
OPEN_FILES_WISHED = 4096  # HTTP takes up to 1024 connections, RPC 512, and files come to that
MEMORY_BYTES_MIN = 256 * 1024**2  # twice what an idle node takes
WATCHDOG_SECONDS_MIN = 5.0  # a busy disk may hold the event loop up for a second or two


def look_at_machine(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Blocking, for a moment."""
    yield _of_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield _of_memory()
    yield _of_watchdog(Notifier.of(environment))


def _of_files(limit: int) -> Finding:
    found = f"a process may have {'any number of' if limit == resource.RLIM_INFINITY else limit} files open"
    if limit == resource.RLIM_INFINITY or limit >= OPEN_FILES_WISHED:
        return Finding("open files", "ok", found)
    remedy = f"raise it to {OPEN_FILES_WISHED} or more: LimitNOFILE= of a unit, or ulimit -n"
    return Finding("open files", "warning" if limit >= OPEN_FILES_MIN else "wrong", found, remedy)


def _of_memory() -> Finding:
    free = _available_bytes()
    if free is None:
        return Finding("memory", "info", "how much memory is free cannot be seen here")
    found = f"{format_bytes(free)} are free"
    if free >= MEMORY_BYTES_MIN:
        return Finding("memory", "ok", found)
    remedy = f"a node wants {format_bytes(MEMORY_BYTES_MIN)}, and batches of pipelines come to that"
    return Finding("memory", "warning", found, remedy)


def _available_bytes() -> int | None:
    """What this process may still take: of the machine, or less if its control group has a limit."""
    lines = _lines(Path("/proc/meminfo"))
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = (_lines(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit and used and limit[0].isdigit() and used[0].isdigit():
        found.append(max(int(limit[0]) - int(used[0]), 0))
    return min(found, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _of_watchdog(notifier: Notifier) -> Finding:
    is_heard, seconds = notifier.is_heard, notifier.watchdog_seconds
    notifier.close()
    if not is_heard:
        return Finding(
            "service manager", "info", "none is there; conf/conveyord.service has systemd start a node again that hangs"
        )
    if seconds is None:
        return Finding(
            "service manager",
            "warning",
            "it watches nothing",
            "set WatchdogSec=20s, so that a node that hangs is started again",
        )
    if seconds < WATCHDOG_SECONDS_MIN:
        return Finding(
            "service manager",
            "warning",
            f"its watchdog waits for {format_seconds(seconds)} only",
            f"a slow disk alone could end the node; set WatchdogSec to {WATCHDOG_SECONDS_MIN:g}s or more",
        )
    return Finding("service manager", "ok", f"its watchdog waits for {format_seconds(seconds)}")
