"""Dead letters as people and programs read them: one letter as text or as an object, and files of letters."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from conveyord.cli.dlq_selection import moment
from conveyord.core.errors import ConfigError
from conveyord.core.flow.dead_letters import PARTS_PER_LETTER, ROWS_PER_WAY

if TYPE_CHECKING:
    from conveyord.storage.dead_letters.letters import StoredLetter

HEXDUMP_BYTES_MAX = 4096  # of a binary record shown to people; -o json and export have all of it
PARQUET_ROWS = 1000  # of a row group; payloads may be large, and are held until it is written
PARQUET_COLUMNS = (
    *("id", "pipeline", "source", "partition", "offset", "stage", "part", "code", "message", "attempts"),
    *("first", "last", "state", "came_from", "lacked_by", "edited", "damage", "raw", "row"),
)
SUFFIXES = (".jsonl", ".parquet")


def place_of(stored: StoredLetter) -> str:
    """Where the record stands: `in: /data/a.jsonl, offset 17`, and which of its rows if it became several."""
    key = stored.letter.key
    part = f", row {key.part % ROWS_PER_WAY}" if 0 < key.part < PARTS_PER_LETTER else ""
    return f"{key.partition.source}: {key.partition.name}, offset {key.offset}{part}"


def as_object(stored: StoredLetter) -> dict[str, Any]:
    """A letter with its payload as JSON values. `raw` is set for UTF-8, `raw_base64` for anything else."""
    from conveyord.cli.dlq_rows import row_as_object

    raw, text = stored.letter.raw, _text(stored.letter.raw)
    return {
        **facts_of(stored),
        "edited": stored.edited,
        "damage": stored.damage,
        "raw": text,
        "raw_base64": base64.b64encode(raw).decode() if raw is not None and text is None else None,
        "row": None if stored.letter.row is None else row_as_object(stored.letter.row),
    }


def facts_of(stored: StoredLetter) -> dict[str, Any]:
    """A letter without its payload as JSON values."""
    letter, key = stored.letter, stored.letter.key
    return {
        "id": stored.id,
        "pipeline": key.pipeline,
        "source": key.partition.source,
        "partition": key.partition.name,
        "offset": key.offset,
        "stage": key.stage,
        "part": key.part,
        "code": letter.code,
        "message": letter.message,
        "attempts": letter.attempts,
        "first": moment(stored.first_micros),
        "last": moment(stored.last_micros),
        "state": stored.state,
        "came_from": stored.came_from or None,
        "lacked_by": sorted(stored.claims),
    }


def as_text(stored: StoredLetter) -> str:
    """A letter for people. Bytes that a terminal should not get are shown as a hexdump."""
    from conveyord.cli.dlq_rows import row_as_object

    letter = stored.letter
    state = f"{stored.state}, edited" if stored.edited else stored.state
    facts = {
        "dead letter": f"{stored.id} ({state})",
        "pipeline": letter.key.pipeline,
        "record": place_of(stored),
        "stage": letter.key.stage,
        "code": letter.code,
        "message": printable(letter.message),
        "attempts": str(letter.attempts),
        "first": moment(stored.first_micros),
        "last": moment(stored.last_micros),
        "lacked by": printable("; ".join(sorted(stored.claims)) or "nobody any more"),
    }
    if stored.came_from:
        facts["came from"] = f"dead letter {stored.came_from}, when that was replayed"
    lines = [f"{label:<12} {text}" for label, text in facts.items()]
    if stored.damage is not None:
        lines.append(f"{'damaged':<12} {stored.damage}; the payload is lost, purge the letter or restore the file")
    elif letter.raw is None and letter.row is None and stored.state != "replayed":
        lines.append(f"{'content':<12} none: its source keeps no bytes of such a record")
    if letter.raw is not None:
        lines += ["", f"raw, {len(letter.raw):,} bytes:", *_raw_lines(letter.raw)]
    if letter.row is not None:
        lines += ["", "row:", json.dumps(row_as_object(letter.row), ensure_ascii=False, indent=2)]
    return "\n".join(lines)


def printable(text: str) -> str:
    """`text` on one line, with what would move a terminal's cursor replaced."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class Exported(NamedTuple):
    """How many letters a file holds; how many of them have neither bytes nor row there, and how many because of damage.

    The others without content are records whose source kept no bytes of them, such as those that are too large.
    """

    letters: int = 0
    without_content: int = 0
    damaged: int = 0

    def and_one(self, stored: StoredLetter) -> Exported:
        """The same with one more."""
        is_empty = stored.letter.raw is None and stored.letter.row is None
        return Exported(self.letters + 1, self.without_content + is_empty, self.damaged + (stored.damage is not None))


def export(path: Path, letters: Iterable[StoredLetter]) -> Exported:
    """Write letters to a new file of the format its name says, replacing it when complete. Returns how many. Blocking.

    Raises ConfigError if the name has no known suffix, or if the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: the name must end in {' or '.join(SUFFIXES)}, which says the format")
    write = _write_jsonl if path.suffix == ".jsonl" else _write_parquet
    with _replacing(path) as partial:
        return write(partial, letters)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_jsonl(path: Path, letters: Iterable[StoredLetter]) -> Exported:
    done = Exported()
    with path.open("w", encoding="utf-8") as file:
        for stored in letters:
            file.write(json.dumps(as_object(stored), ensure_ascii=False) + "\n")
            done = done.and_one(stored)
    return done


def _write_parquet(path: Path, letters: Iterable[StoredLetter]) -> Exported:
    """Columns as in JSON, except that times are timestamps, `raw` is binary and `row` the text of an object."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(PARQUET_COLUMNS, pa.string())
    types |= dict.fromkeys(("id", "offset", "part", "attempts", "came_from"), pa.int64())
    types |= dict.fromkeys(("first", "last"), pa.timestamp("us", tz="UTC"))
    types |= {
        "lacked_by": pa.list_(pa.string()),
        "edited": pa.bool_(),
        "raw": pa.large_binary(),
        "row": pa.large_string(),
    }
    schema = pa.schema(types)
    done = Exported()
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for stored in letters:
            rows.append(_parquet_row(stored))
            done = done.and_one(stored)
            if len(rows) == PARQUET_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return done


def _parquet_row(stored: StoredLetter) -> dict[str, Any]:
    row = as_object(stored)
    shown = None if row["row"] is None else json.dumps(row["row"], ensure_ascii=False)
    return {**row, "first": stored.first_micros, "last": stored.last_micros, "raw": stored.letter.raw, "row": shown}


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _raw_lines(raw: bytes) -> Iterator[str]:
    text = _text(raw)
    if text is not None and all(char.isprintable() or char in "\t\n\r" for char in text):
        yield text.rstrip("\r\n")
        return
    for first in range(0, min(len(raw), HEXDUMP_BYTES_MAX), 16):
        part = raw[first : first + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{first:08x}  {part.hex(' '):<47}  {shown}"
    if len(raw) > HEXDUMP_BYTES_MAX:
        yield f"… {len(raw) - HEXDUMP_BYTES_MAX:,} bytes more; -o json has them all"
