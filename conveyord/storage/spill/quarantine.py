"""Where bytes go that a queue cannot vouch for: kept for whoever looks into it, and bounded."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from conveyord.storage.spill.disk import READ_BYTES
from conveyord.storage.spill.examination import Scanned

QUARANTINE_DIRECTORY = "quarantine"
QUARANTINE_BYTES = 256 * 1024**2  # eight segments: enough to find out what happened, too little to fill a disk
_SUFFIX = ".bad"
NAMES_MAX = 10_000  # tries for a free name: frame numbers come again after a quarantine


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Bytes from `offset` of a segment on that were taken out of a queue. `kept` is None if they did not fit."""

    segment: str
    offset: int
    reason: str
    bytes: int
    kept: Path | None


class Quarantine:
    """The quarantine of one queue. Blocking. `expired` counts the files that were deleted to make room."""

    def __init__(self, directory: Path, *, bytes_max: int) -> None:
        self._directory = directory / QUARANTINE_DIRECTORY
        self._bytes_max = bytes_max
        self.expired = 0

    def take(self, segments: Sequence[Scanned]) -> tuple[Quarantined, ...]:
        """Keep the bytes of each segment from its last good frame on, if there is room. The segments stay as they are.

        From the last on, because the oldest goes first when room is needed: what is damaged says more than
        what merely followed it. A full disk is no reason to fail: these bytes are of no use to the queue.
        """
        taken = [(segment, self._take(segment)) for segment in reversed(segments)]
        return tuple(
            Quarantined(
                segment.path.name,
                segment.end,
                segment.reason,
                segment.size - segment.end,
                kept if kept and kept.exists() else None,
            )
            for segment, kept in reversed(taken)
        )

    def _take(self, segment: Scanned) -> Path | None:
        size = segment.size - segment.end
        if size <= self._bytes_max:
            self._make_room(size)
            with suppress(OSError):
                return self._copy(segment)
        return None

    def _copy(self, segment: Scanned) -> Path:
        self._directory.mkdir(exist_ok=True)
        stem = f"{segment.path.stem}-{segment.end}"
        names = (f"{stem}-{count}" for count in range(1, NAMES_MAX))
        target = next(path for name in names if not (path := self._directory / (name + _SUFFIX)).exists())
        try:
            if segment.end == 0:
                os.link(segment.path, target)  # takes no space, and the queue unlinks its own name afterwards
            else:
                with segment.path.open("rb") as source, target.open("xb") as copy:
                    source.seek(segment.end)
                    shutil.copyfileobj(source, copy, READ_BYTES)
            note = {
                "segment": segment.path.name,
                "offset": segment.end,
                "reason": segment.reason,
                "bytes": segment.size - segment.end,
                "taken_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            target.with_suffix(".json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        except OSError:
            _remove(target)
            raise
        return target

    def _make_room(self, size: int) -> None:
        files = quarantined_files(self._directory.parent)
        held = sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in files:
            if held + size <= self._bytes_max:
                return
            _remove(path)
            held -= bytes_
            self.expired += 1


def quarantined_files(directory: Path) -> list[tuple[int, int, Path]]:
    """Blocking. (time of entry in ns, bytes, path) of what the quarantine of a queue holds, oldest first."""
    files = []
    for path in (directory / QUARANTINE_DIRECTORY).glob("*" + _SUFFIX):
        with suppress(FileNotFoundError):  # it expired meanwhile
            status = path.stat()
            # The time of change, not of modification: a segment that was moved here kept the latter.
            files.append((status.st_ctime_ns, status.st_size, path))
    # Within one tick of the clock the later segments are the older entries, see `Quarantine.take`.
    files.sort(key=lambda file: file[2].name, reverse=True)
    return sorted(files, key=lambda file: file[0])


def _remove(path: Path) -> None:
    for name in (path, path.with_suffix(".json")):
        with suppress(OSError):  # it is in the way at worst
            name.unlink()
