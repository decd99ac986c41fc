"""What a queue's directory holds, byte by byte or by its headers alone. Changes nothing and takes no lock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conveyord.storage.spill.ledger import read_ledger
from conveyord.storage.spill.segments import (
    SEGMENT_HEADER_BYTES,
    Fault,
    Place,
    SegmentFile,
    SegmentHeader,
    segments_in,
)

Verdict = Literal["settled", "intact", "torn", "damaged", "orphaned"]
OnFrame = Callable[[SegmentFile, Place], None]


@dataclass(frozen=True, slots=True)
class Scanned:
    """One segment and what is to become of it.

    settled: everything in it is done. intact: all of it is to be read. torn: the queue ends in a write that
    was cut short at `end`. damaged: wrong from byte `end` on. orphaned: it may be intact, but frames before
    it are missing. last: the number of its last good frame, `first - 1` if there is none. `header` is None
    where it was not looked at or is damaged. `reason` is empty where nothing is wrong.
    """

    first: int
    path: Path
    size: int
    verdict: Verdict
    end: int
    last: int
    header: SegmentHeader | None = None
    reason: str = ""

    @property
    def good(self) -> bool:
        """Whether it holds frames that are still to be read."""
        return self.verdict in {"intact", "torn", "damaged"} and self.last >= self.first


@dataclass(frozen=True, slots=True)
class Examination:
    """A queue as it lies on disk. `settled` is the number up to which it is done."""

    settled: int
    has_ledger: bool
    segments: tuple[Scanned, ...]

    @property
    def last(self) -> int:
        """The number of the last frame that can be read, or `settled` if there is none."""
        return max([self.settled, *(segment.last for segment in self.segments if segment.good)])

    @property
    def frames(self) -> int:
        """How many frames can be read and are not done."""
        return self.last - self.settled

    @property
    def fault(self) -> Scanned | None:
        """The first segment with something wrong, if there is one."""
        return next((segment for segment in self.segments if segment.reason), None)


def examine(directory: Path, *, verify: bool, on_frame: OnFrame | None = None) -> Examination:
    """Blocking. Look at every segment of a queue, in order. Raises OSError.

    verify: check every byte of what is to be read, not the headers of frames alone. `on_frame` is called with
    every good frame that is not done. Another process may be using the queue: a segment that vanishes
    meanwhile was settled, and a write that is under way looks torn.
    """
    found = segments_in(directory)
    known = read_ledger(directory)  # after the segments: else one that is settled meanwhile would seem to be missing
    settled = known if known is not None else (found[0][0] - 1 if found else 0)
    need, broken, segments = settled + 1, "", []
    for (first, path), following in itertools.zip_longest(found, found[1:]):
        end = None if following is None else following[0]
        if end is not None and end <= settled + 1:
            scanned = _whole(first, path, "settled", last=end - 1)
        elif broken:
            scanned = _whole(first, path, "orphaned", last=first - 1, reason=broken)
        elif first > need or (first < need and need > settled + 1):
            broken = f"frame {need} should come next, but the segment starts at frame {first}"
            scanned = _whole(first, path, "orphaned", last=first - 1, reason=broken)
        else:
            try:
                scanned = _scan(first, path, settled, is_last=end is None, verify=verify, on_frame=on_frame)
            except FileNotFoundError:
                scanned = Scanned(first, path, 0, "settled", 0, first - 1 if end is None else end - 1)
                settled = max(settled, scanned.last)
            need = max(need, scanned.last + 1)
            if scanned.verdict == "damaged":
                broken = f"follows the damage in {path.name}"
        segments.append(scanned)
    return Examination(settled, known is not None, tuple(segments))


def _whole(first: int, path: Path, verdict: Verdict, *, last: int, reason: str = "") -> Scanned:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    return Scanned(first, path, size, verdict, 0, last, None, reason)


def _scan(first: int, path: Path, settled: int, *, is_last: bool, verify: bool, on_frame: OnFrame | None) -> Scanned:
    with SegmentFile(path) as file:
        size, last, end = file.size(), first - 1, 0
        header = file.header(first=first)
        if isinstance(header, Fault):
            return _faulty(first, path, size, end=0, last=last, header=None, fault=header, is_last=is_last)
        end = SEGMENT_HEADER_BYTES
        for found in file.places(first, end=size):
            fault = found if isinstance(found, Fault) else None
            if isinstance(found, Place) and found.header.number > settled:
                fault = file.verify(found) if verify else None
                if fault is None and on_frame is not None:
                    on_frame(file, found)
            if fault is not None:
                return _faulty(first, path, size, end=end, last=last, header=header, fault=fault, is_last=is_last)
            assert isinstance(found, Place)
            last, end = found.header.number, found.end
    if last <= settled:
        return Scanned(first, path, size, "settled", 0, last, header)
    return Scanned(first, path, size, "intact", end, last, header)


def _faulty(
    first: int, path: Path, size: int, *, end: int, last: int, header: SegmentHeader | None, fault: Fault, is_last: bool
) -> Scanned:
    verdict: Verdict = "torn" if fault.torn and is_last else "damaged"
    return Scanned(first, path, size, verdict, end, last, header, fault.reason)
