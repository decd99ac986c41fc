"""Letters to put, and the store as the engine opens it."""

from __future__ import annotations

from pathlib import Path

from conveyord.core.flow.dead_letters import KEEPS_NONE, DeadLetter, LetterKey
from conveyord.core.flow.positions import Partition
from conveyord.storage.dead_letters.letters import EVERYTHING, Claim, Lane, Selection
from conveyord.storage.dead_letters.store import DeadLetterStore

PIPELINE = "default/job"
BUDGET_BYTES = 64 * 1024 * 1024
DAY_MICROS = 86_400_000_000
LANE = Lane(PIPELINE, "source", KEEPS_NONE)
"""Where the letters go that are made without sinks."""


def letter(offset: int, *, pipeline: str = PIPELINE, stage: str = "source", code: str = "BAD", text: str = "", **more):
    key = LetterKey(pipeline, Partition("source", "/in/a.jsonl"), offset, stage, more.pop("part", 0))
    raw = more.pop("raw", text.encode() or b"raw %d" % offset)
    return DeadLetter(key, code, more.pop("message", f"record {offset} is bad"), raw=raw, **more)


def opened(data_dir: Path, *, at_micros: int = 0, **limits) -> DeadLetterStore:
    limits = {"budget_bytes": BUDGET_BYTES, "retention_seconds": None, **limits}
    return DeadLetterStore(data_dir, at_micros=at_micros, **limits)


def queue(store: DeadLetterStore, selection: Selection = EVERYTHING, *, lane: Lane = LANE, above: int = 0) -> int:
    """Queue what is selected of a lane's letters."""
    found = [stored for stored in store.select(selection, payloads=False) if stored.letter.key.stage == lane.stage]
    mine = [stored.id for stored in found if stored.letter.key.pipeline == lane.pipeline and lane.sink in stored.claims]
    return store.queue(lane.pipeline, [Claim(letter_id, lane.sink) for letter_id in mine], above=above)


def segments(data_dir: Path) -> list[Path]:
    return sorted((data_dir / "dead-letters").glob("segment-*.bin"))


def held(store: DeadLetterStore) -> dict[int, bytes | None]:
    """The raw bytes of every letter by the offset of its record."""
    return {stored.letter.key.offset: stored.letter.raw for stored in store.select()}
