"""Brings a queue's directory into order after whatever ended the process before.

What stays is the longest intact run of frames after the ledger. A torn tail is cut off, the rest of a
damaged queue goes to its quarantine: frames behind a gap must not come as if nothing were missing, and all
of them will be read from the source again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conveyord.storage.disk import sync_directory, truncate
from conveyord.storage.spill.disk import translating
from conveyord.storage.spill.examination import Examination, examine
from conveyord.storage.spill.ledger import Ledger
from conveyord.storage.spill.quarantine import QUARANTINE_BYTES, Quarantine, Quarantined
from conveyord.storage.spill.segments import SegmentFile, SegmentHeader, segments_in


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found when a queue was opened.

    frames and bytes: what is to be read, `bytes` with everything that lies in its segments. torn_bytes: cut
    off the end. expired: older files that the quarantine gave up. discarded: why all that lay there was
    deleted, None if it was not.
    """

    frames: int = 0
    bytes: int = 0
    torn_bytes: int = 0
    quarantined: tuple[Quarantined, ...] = ()
    expired: int = 0
    discarded: str | None = None


def recover(directory: Path, *, digest: bytes | None, quarantine: Quarantine) -> tuple[Examination, Recovery]:
    """Blocking. Put `directory` in order. Gives what it now holds, and what was done. Raises OSError.

    digest: of the definition that the frames must come from; None for any. Every step leaves a directory that
    the next recovery understands, whichever of them was the last.
    """
    discarded = None
    if digest is not None and (foreign := _foreign(directory, digest)):
        discarded = f"{foreign} was written by another definition of the pipeline; its rows are read again"
        _unlink([path for _, path in segments_in(directory)])
        sync_directory(directory)
    found = examine(directory, verify=True)
    doomed = [segment for segment in found.segments if not segment.good or segment.last <= found.settled]
    quarantined = quarantine.take([segment for segment in found.segments if segment.verdict in {"damaged", "orphaned"}])
    _unlink([segment.path for segment in doomed])
    kept = tuple(segment for segment in found.segments if segment not in doomed)
    for segment in kept:
        if segment.end < segment.size:
            truncate(segment.path, segment.end)
    if doomed:
        sync_directory(directory)  # numbers come again: an old file of that name must not
    recovery = Recovery(
        frames=found.frames,
        bytes=sum(segment.end for segment in kept),
        torn_bytes=sum(segment.size - segment.end for segment in found.segments if segment.verdict == "torn"),
        quarantined=quarantined,
        expired=quarantine.expired,
        discarded=discarded,
    )
    return Examination(found.settled, found.has_ledger, kept), recovery


def repair(directory: Path) -> Recovery:
    """Blocking. Recover a queue that no process uses, whatever definition it is of. Raises StorageFull, Retryable."""
    with translating(directory):
        found, recovery = recover(directory, digest=None, quarantine=Quarantine(directory, bytes_max=QUARANTINE_BYTES))
        Ledger(directory, settled=found.settled).close()  # written anew if it is missing or damaged
    return recovery


def _foreign(directory: Path, digest: bytes) -> str | None:
    """The name of the first segment of another definition. Damaged headers say nothing and are met later."""
    for first, path in segments_in(directory):
        with SegmentFile(path) as file:
            header = file.header(first=first)
        if isinstance(header, SegmentHeader) and header.digest != digest:
            return path.name
    return None


def _unlink(paths: list[Path]) -> None:
    # In any order: what is left by a stop in between is below the ledger, behind a gap, or foreign, as before.
    for path in paths:
        path.unlink(missing_ok=True)
