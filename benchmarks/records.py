"""The records that the benchmarks read: trip events of about 230 bytes, 8 fields, one nested, one timestamp."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

COUNTRIES = ("FR", "DE", "US", "BR", "JP", "IN", "NG", "MX")
STATUSES = ("booked", "started", "finished", "cancelled")
CHUNK_RECORDS = 50_000


def lines(count: int, *, seed: int = 7) -> Iterator[str]:
    """`count` JSON lines, the same for the same seed."""
    rng = random.Random(seed)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(count):
        at = start + timedelta(milliseconds=number * 37)
        yield (
            f'{{"id":{number},"at":"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",'
            f'"user":"u{rng.randrange(10**9):09d}@riders.example.com","country":"{COUNTRIES[rng.randrange(8)]}",'
            f'"price":{rng.randrange(100, 99_999) / 100},"qty":{rng.randrange(1, 20)},'
            f'"status":"{STATUSES[rng.randrange(4)]}",'
            f'"trip":{{"device":"dev-{rng.randrange(5000):04d}-android-14.2","x":{rng.randrange(10**9) / 10**6},'
            f'"y":{rng.randrange(10**9) / 10**6},"ok":{"true" if rng.randrange(9) else "false"}}}}}\n'
        )


def make(path: Path, count: int) -> Path:
    """Write `count` records to `path` unless it is there already; returns `path`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="ascii") as out:
            chunk: list[str] = []
            for line in lines(count):
                chunk.append(line)
                if len(chunk) == CHUNK_RECORDS:
                    out.write("".join(chunk))
                    chunk.clear()
            out.write("".join(chunk))
        partial.rename(path)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    make(arguments.path, arguments.count)
