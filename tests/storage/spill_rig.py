"""Small frames that can be told apart, queues in small segments, and damage on purpose."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage.spill.budget import SpillBudget
from conveyord.storage.spill.frames import FrameMeta
from conveyord.storage.spill.queue import SpillQueue
from conveyord.storage.spill.segments import SegmentFile

SEGMENT_BYTES = 3_500  # four frames of `batch`
GIGABYTE = 1024**3
PARTITION = Partition("orders", "/in/a.jsonl")


def meta(value: int) -> FrameMeta:
    span = Span(PARTITION, value, value + 1, f"mark-{value}")
    return FrameMeta((span,), Tally(read=1, skipped=0), {"orders": f"state {value}"})


def batch(value: int, *, size: int = 0) -> pa.RecordBatch:
    """One row that says `value`, and `size` bytes that do not compress."""
    noise = b"".join((value * 2654435761 + index * 40503).to_bytes(8, "big")[-4:] for index in range(size // 4))
    return pa.record_batch({"value": [value], "text": [f"row {value}"], "noise": [noise]})


def opened(directory: Path, *, budget: int | SpillBudget = GIGABYTE, digest: str = "a", **settings: int) -> SpillQueue:
    shared = budget if isinstance(budget, SpillBudget) else SpillBudget(budget)
    return SpillQueue.open(directory, digest=digest, budget=shared, **{"segment_bytes": SEGMENT_BYTES, **settings})


def fill(queue: SpillQueue, values: Iterable[int]) -> list[int]:
    return [queue.append(meta(value), batch(value)) for value in values]


def value_of(read: tuple[int, FrameMeta, pa.RecordBatch]) -> int:
    """The value of a frame all of which must be as `meta` and `batch` made it."""
    number, found, data = read
    value = data["value"][0].as_py()
    assert found == meta(value), (number, found)
    assert data["text"][0].as_py() == f"row {value}"
    return value


def drain(queue: SpillQueue) -> list[int]:
    """The values of all frames that can be read now."""
    values = []
    while (read := queue.read()) is not None:
        values.append(value_of(read))
    return values


def values_in(directory: Path) -> list[int]:
    with opened(directory) as queue:
        return drain(queue)


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def frames_of(path: Path) -> list[tuple[int, int]]:
    """(offset, end) of every frame of an intact segment."""
    with SegmentFile(path) as file:
        places = list(file.places(int(path.stem), end=file.size()))
    return [(place.offset, place.end) for place in places]


def flip(path: Path, offset: int, *, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }
