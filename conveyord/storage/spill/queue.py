"""A disk queue for one edge of one pipeline: frames go in at one end, are read in order, and are settled.

Laws:
1. What is read is what was appended, in order and without a gap, or `Corrupt` is raised.
2. After any crash a queue holds an intact prefix of what was appended and not settled.
3. The ledger says that a frame is done before anything of it is deleted.
4. A full disk or budget refuses an append and changes nothing; settling works on a full disk.

Frames are not synced one by one. A killed process loses none, a power cut may take the last ones: their rows
are read from the source again, because only the fence of the table says what was delivered, and a position
never moves before the rows behind it are settled. For the same reason frames may come again that a sink has
already committed, if the process ended between its commit and `settle`.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import pyarrow as pa

from conveyord.core.errors import Corrupt, Refused, StorageFull
from conveyord.core.units import format_bytes
from conveyord.storage.disk import sync_directory, truncate, write_all
from conveyord.storage.spill.budget import SpillBudget
from conveyord.storage.spill.disk import Bytes, translated, translating
from conveyord.storage.spill.frames import FrameMeta, decode_meta, decode_payload, encode_frame
from conveyord.storage.spill.ledger import Ledger
from conveyord.storage.spill.quarantine import QUARANTINE_BYTES, Quarantine
from conveyord.storage.spill.recovery import recover
from conveyord.storage.spill.segments import (
    SEGMENT_BYTES,
    SEGMENT_HEADER_BYTES,
    Fault,
    Place,
    SegmentFile,
    SegmentHeader,
    digest_of,
    segment_name,
)

T = TypeVar("T")
REMEDY = "run again: the rows are read from the source again"


@dataclass(slots=True)
class _Segment:
    """Frames `first` to `last` in the first `end` bytes of a file."""

    first: int
    path: Path
    end: int
    last: int


class SpillQueue:
    """One queue. Blocking, one thread at a time; one owner per directory (the lock of the data directory).

    Numbers of frames rise by one and never start again while the ledger lives. `settled` is the number up to
    which everything is done, `last` the newest, `frames` how many lie between, `bytes` what is on disk.
    """

    def __init__(
        self,
        directory: Path,
        *,
        digest: bytes,
        budget: SpillBudget,
        segment_bytes: int,
        quarantine_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._digest = digest
        self._budget = budget
        self._segment_bytes = segment_bytes
        self._clock = clock
        directory.mkdir(parents=True, exist_ok=True)
        found, self.recovered = recover(
            directory, digest=digest, quarantine=Quarantine(directory, bytes_max=quarantine_bytes)
        )
        self._ledger = Ledger(directory, settled=found.settled)
        self._segments = [_Segment(each.first, each.path, each.end, each.last) for each in found.segments]
        self.settled = found.settled
        self.last = found.last
        self._next = self.settled + 1
        self._next_offset: int | None = None  # unknown: found by walking the headers of its segment
        self._reading: tuple[Path, SegmentFile] | None = None
        # Only a file of this process is appended to: one that lost its tail must not get another.
        self._writing: int | None = None
        self._has_leftover = False
        budget.charge(self.bytes)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        digest: str,
        budget: SpillBudget,
        segment_bytes: int = SEGMENT_BYTES,
        quarantine_bytes: int = QUARANTINE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> SpillQueue:
        """Open the queue in `directory`, making it if need be, and recover it (see `recovered`). Reads all of it.

        digest: stands for everything upstream of the edge that decides what its frames hold. Frames written
        under another digest are deleted. quarantine_bytes: how much of what was damaged is kept.
        clock: seconds since the epoch, for the age that is shown. Raises StorageFull, Retryable.
        """
        with translating(directory):
            return cls(
                directory,
                digest=digest_of(digest),
                budget=budget,
                segment_bytes=segment_bytes,
                quarantine_bytes=quarantine_bytes,
                clock=clock,
            )

    @property
    def frames(self) -> int:
        return self.last - self.settled

    @property
    def bytes(self) -> int:
        return sum(segment.end for segment in self._segments)

    def append(self, meta: FrameMeta, data: pa.RecordBatch) -> int:
        """Add one frame and return its number. It is in the page cache, not synced.

        Raises StorageFull if the budget or the disk has no room: nothing has changed, wait and append it again.
        Raises Refused if the frame is larger than the whole budget, for which waiting will not help.
        """
        number = self.last + 1
        parts = encode_frame(number, meta, data)
        size = sum(len(part) for part in parts)
        is_new = self._writing is None or self._segments[-1].end + size > self._segment_bytes
        needed = size + (SEGMENT_HEADER_BYTES if is_new else 0)
        if needed > self._budget.bytes_max:
            raise Refused(
                f"{self._directory}: one batch takes {format_bytes(needed)}, the budget of all queues is "
                f"{format_bytes(self._budget.bytes_max)}; raise spill.budget or make batches smaller"
            )
        if not self._budget.reserve(needed):
            raise StorageFull(
                f"{self._directory}: the queues on disk hold {format_bytes(self._budget.in_use)} of at most "
                f"{format_bytes(self._budget.bytes_max)} (spill.budget); nothing is lost, the source waits"
            )
        try:
            if is_new:
                self._start_segment(number, parts)
            else:
                self._extend_segment(parts)
        except OSError as error:
            self._budget.release(needed)
            raise translated(error, self._directory) from error
        segment = self._segments[-1]
        segment.end += needed if not is_new else 0
        segment.last = self.last = number
        return number

    def read(self) -> tuple[int, FrameMeta, pa.RecordBatch] | None:
        """The next frame that was not read yet, or None if there is none at the moment.

        Raises Corrupt if its bytes are not those that were written: nothing can be read behind it.
        """
        segment = self._segment_of(self._next)
        if segment is None:
            return None
        with translating(segment.path):
            file = self._opened(segment.path)
            place = self._place_of(segment, file)
            payload = _sound(segment, file.payload(place))
        meta = self._meta(segment, file, place)
        try:
            data = decode_payload(payload)
        except (pa.ArrowException, StopIteration) as error:
            raise _corrupt(segment, Fault(place.offset, f"Arrow cannot read it: {error}")) from error
        number = self._next
        self._next, self._next_offset = number + 1, place.end
        return number, meta, data

    def metas(self) -> Iterator[tuple[int, FrameMeta]]:
        """Number and meta of every frame that is not settled, in order, whether read or not.

        Payloads are not looked at. Do not settle or discard meanwhile. Raises Corrupt like `read`.
        """
        for segment in tuple(self._segments):
            with translating(segment.path), SegmentFile(segment.path) as file:
                for found in file.places(segment.first, end=segment.end):
                    place = _sound(segment, found)
                    if place.header.number > self.settled:
                        yield place.header.number, self._meta(segment, file, place)

    def settle(self, number: int) -> None:
        """Everything up to and including frame `number` is done, whether it was read or not. On disk on return.

        A number that is settled already changes nothing. Raises StorageFull or Retryable if the ledger cannot
        be written, which takes a read-only or failing disk, not a full one: settle it again later.
        """
        assert number <= self.last, f"settled frame {number}, the last is {self.last}"
        if number <= self.settled:
            return
        with translating(self._directory):
            self._ledger.write(number)
        self.settled = number
        if self._next <= number:
            self._next, self._next_offset = number + 1, None
        self._drop_settled()

    def discard_after(self, number: int) -> None:
        """Delete every frame after `number`, on disk on return. Numbers go on from there.

        `number` must not be below `settled`. Raises Corrupt if the frame cannot be found, StorageFull, Retryable.
        """
        assert self.settled <= number, f"discarded after frame {number}, but {self.settled} is settled"
        if number >= self.last:
            return
        with translating(self._directory):
            self._stop_writing()
            while self._segments and self._segments[-1].first > number:
                segment = self._segments[-1]
                segment.path.unlink(missing_ok=True)
                self._segments.pop()
                self._budget.release(segment.end)
                self.last = segment.first - 1
                self._rewind()
            if self.last > number:
                segment = self._segments[-1]
                with SegmentFile(segment.path) as file:
                    end = self._walk(segment, file, number + 1)
                truncate(segment.path, end)
                self._budget.release(segment.end - end)
                segment.end, segment.last, self.last = end, number, number
                self._rewind()
            self.last = number
            sync_directory(self._directory)  # numbers come again: what had them before must not
        self._drop_settled()

    def discard_all(self) -> None:
        """Delete every frame. Numbers go on. Raises as `settle` does."""
        self.settle(self.last)

    def close(self) -> None:
        """Close the files and give the bytes back to the budget; what is on disk stays for the next `open`."""
        self._stop_reading()
        if self._writing is not None:
            with suppress(OSError):  # what cannot be cut now is a torn tail for the next recovery
                self._cut_leftover()
            os.close(self._writing)
            self._writing = None
        self._budget.release(self.bytes)
        self._segments.clear()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing.

    def _start_segment(self, number: int, parts: list[Bytes]) -> None:
        self._stop_writing()
        path = self._directory / segment_name(number)
        header = SegmentHeader(number, int(self._clock() * 1_000_000), self._digest).encoded()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(descriptor, [header, *parts], 0)
        except OSError:
            os.close(descriptor)
            with suppress(OSError):  # the next attempt has the same name, and a recovery finds a torn tail
                path.unlink()
            raise
        self._writing = descriptor
        end = SEGMENT_HEADER_BYTES + sum(len(part) for part in parts)
        self._segments.append(_Segment(number, path, end, number))

    def _extend_segment(self, parts: list[Bytes]) -> None:
        assert self._writing is not None
        self._cut_leftover()
        try:
            write_all(self._writing, parts, self._segments[-1].end)
        except OSError:
            self._has_leftover = True
            with suppress(OSError):  # tried again before anything else is written
                self._cut_leftover()
            raise

    def _cut_leftover(self) -> None:
        """Remove what a failed append left, so that no later segment can follow it."""
        if self._has_leftover and self._writing is not None:
            os.ftruncate(self._writing, self._segments[-1].end)
        self._has_leftover = False

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._cut_leftover()
            os.close(self._writing)
            self._writing = None

    def _drop_settled(self) -> None:
        """Unlink the segments in which everything is done, the one that is being written included.

        Were that one kept, a queue that is read up could hold on to budget that its next frame needs.
        """
        while self._segments and self._segments[0].last <= self.settled:
            segment = self._segments[0]
            if len(self._segments) == 1 and self._writing is not None:
                os.close(self._writing)
                self._writing, self._has_leftover = None, False
            if self._reading is not None and self._reading[0] == segment.path:
                self._stop_reading()
            try:
                segment.path.unlink(missing_ok=True)
            except OSError:
                return  # the ledger has it: it is tried again with the next settle, and when the queue is opened
            del self._segments[0]
            self._budget.release(segment.end)

    # Reading.

    def _segment_of(self, number: int) -> _Segment | None:
        if number > self.last:
            return None
        return self._segments[bisect_right(self._segments, number, key=lambda segment: segment.first) - 1]

    def _opened(self, path: Path) -> SegmentFile:
        if self._reading is None or self._reading[0] != path:
            self._stop_reading()
            self._reading = (path, SegmentFile(path))
        return self._reading[1]

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading[1].close()
            self._reading = None

    def _rewind(self) -> None:
        """Forget where reading goes on, after the end of the queue moved back."""
        self._stop_reading()
        self._next, self._next_offset = min(self._next, self.last + 1), None

    def _place_of(self, segment: _Segment, file: SegmentFile) -> Place:
        offset = self._next_offset
        if self._next == segment.first:
            offset = SEGMENT_HEADER_BYTES
        elif offset is None:
            offset = self._walk(segment, file, self._next)
        return _sound(segment, file.place(offset, number=self._next, end=segment.end))

    def _walk(self, segment: _Segment, file: SegmentFile, number: int) -> int:
        """The offset of frame `number` of `segment`, found by the headers before it."""
        offset = SEGMENT_HEADER_BYTES
        for found in file.places(segment.first, end=segment.end):
            place = _sound(segment, found)
            if place.header.number == number:
                return place.offset
            offset = place.end
        return offset

    def _meta(self, segment: _Segment, file: SegmentFile, place: Place) -> FrameMeta:
        with translating(segment.path):
            packed = _sound(segment, file.meta(place))
        try:
            return decode_meta(packed)
        except ValueError as error:
            raise _corrupt(segment, Fault(place.offset, str(error))) from error


def _sound(segment: _Segment, found: T | Fault) -> T:
    if isinstance(found, Fault):
        raise _corrupt(segment, found)
    return found


def _corrupt(segment: _Segment, fault: Fault) -> Corrupt:
    return Corrupt(f"{segment.path}: {fault.reason} (byte {fault.offset}); {REMEDY}")
