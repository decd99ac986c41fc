"""What `conveyord buffer` shows of the queues below a data directory. Changes nothing and takes no lock."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conveyord.core.errors import ConfigError, Corrupt
from conveyord.core.flow.positions import Partition, Span
from conveyord.storage.spill.disk import translating
from conveyord.storage.spill.examination import Examination, Scanned, examine
from conveyord.storage.spill.frames import decode_meta
from conveyord.storage.spill.names import queues_in
from conveyord.storage.spill.quarantine import QUARANTINE_DIRECTORY, quarantined_files
from conveyord.storage.spill.segments import Place, SegmentFile


@dataclass(frozen=True, slots=True)
class QueueName:
    """One queue: the pipeline (`namespace/name`), the edge, and where it lies."""

    pipeline: str
    edge: str
    directory: Path

    def __str__(self) -> str:
        return f"{self.pipeline}/{self.edge}"


@dataclass(frozen=True, slots=True)
class QueueReport:
    """One line of `conveyord buffer ls`.

    frames: not settled. bytes: of the segments, settled frames included. age_seconds: since the oldest segment
    was begun, None if there is none. health: `ok`, `torn` or `damaged`, by the headers of the frames alone.
    """

    pipeline: str
    edge: str
    frames: int
    bytes: int
    segments: int
    age_seconds: float | None
    health: str
    quarantined_files: int
    quarantined_bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """All of one queue, every byte checked. `spans` is what its frames cover, neighbours joined."""

    settled: int
    last: int
    has_ledger: bool
    segments: tuple[Scanned, ...]
    spans: tuple[Span, ...]
    quarantined: tuple[tuple[Path, int], ...]

    @property
    def fault(self) -> Scanned | None:
        """The segment with the first bad byte, which is its `end`."""
        return next((segment for segment in self.segments if segment.reason), None)

    def as_json(self) -> dict[str, Any]:
        """The whole inspection as JSON values."""
        fault = self.fault
        return {
            "settled": self.settled,
            "last": self.last,
            "frames": self.last - self.settled,
            "has_ledger": self.has_ledger,
            "segments": [_segment_json(segment) for segment in self.segments],
            "spans": [asdict(span) | {"partition": span.partition._asdict()} for span in self.spans],
            "first_bad": fault and {"segment": fault.path.name, "offset": fault.end, "reason": fault.reason},
            "quarantined": [{"path": str(path), "bytes": size} for path, size in self.quarantined],
        }


def find_queues(data_dir: Path, wanted: str | None = None) -> list[QueueName]:
    """Blocking. All queues below `data_dir`, or the one called `wanted` (PIPELINE/EDGE).

    Raises ConfigError if that one is not there.
    """
    with translating(data_dir):
        found = [QueueName(*parts) for parts in queues_in(data_dir)]
    if wanted is None:
        return found
    chosen = [name for name in found if str(name) == wanted]
    if not chosen:
        known = ", ".join(map(str, found[:5])) or "none"
        raise ConfigError(f"there is no buffer {wanted!r} in {data_dir}; there is: {known}")
    return chosen


def report(name: QueueName, *, now_seconds: float) -> QueueReport:
    """Blocking. One queue at a glance. Reads the headers of its frames only. Raises Retryable."""
    with translating(name.directory):
        found = examine(name.directory, verify=False)
        quarantined = quarantined_files(name.directory)
    created = [segment.header.created_micros for segment in found.segments if segment.header and segment.good]
    return QueueReport(
        name.pipeline,
        name.edge,
        frames=found.frames,
        bytes=sum(segment.size for segment in found.segments),
        segments=len(found.segments),
        age_seconds=max(now_seconds - min(created) / 1_000_000, 0.0) if created else None,
        health=_health(found),
        quarantined_files=len(quarantined),
        quarantined_bytes=sum(size for _, size, _ in quarantined),
    )


def inspect(name: QueueName) -> Inspection:
    """Blocking. Every segment of one queue, every byte of it read. Raises Corrupt, Retryable."""
    covered: dict[tuple[Partition, int], Span] = {}  # by where they end, so that a neighbour finds its place

    def collect(file: SegmentFile, place: Place) -> None:
        packed = file.meta(place)
        if not isinstance(packed, bytes):
            raise Corrupt(f"{name.directory}: {packed.reason}; it changed while it was read, inspect it again")
        for span in decode_meta(packed).spans:
            before = covered.pop((span.partition, span.first), span)
            covered[span.partition, span.end] = Span(span.partition, before.first, span.end, span.mark)

    with translating(name.directory):
        found = examine(name.directory, verify=True, on_frame=collect)
        quarantined = quarantined_files(name.directory)
    return Inspection(
        found.settled,
        found.last,
        found.has_ledger,
        found.segments,
        tuple(covered.values()),
        tuple((path.relative_to(name.directory / QUARANTINE_DIRECTORY), size) for _, size, path in quarantined),
    )


def _health(found: Examination) -> str:
    fault = found.fault
    if fault is None:
        return "ok"
    return "torn" if fault.verdict == "torn" else "damaged"


def _segment_json(segment: Scanned) -> dict[str, Any]:
    header = segment.header
    return {
        "name": segment.path.name,
        "first": segment.first,
        "last": segment.last,
        "bytes": segment.size,
        "intact_bytes": segment.end,
        "state": segment.verdict,
        "reason": segment.reason or None,
        "created_micros": header.created_micros if header else None,
        "definition": header.digest.hex()[:16] if header else None,
    }
