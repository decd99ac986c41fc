"""Whether what is to take the place of a dead letter's record is one record, as far as the letter tells how it is read.

A letter names no format, but where its record stands: in a file whose name ends as those of its format do, or at an
address whose records are JSON. Elsewhere, such as in a topic, any bytes may be a record; there a replay is the first
to know, and what it refuses stays a letter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from conveyord.core.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from conveyord.storage.dead_letters.letters import StoredLetter

JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})
SEPARATED = frozenset({".csv", ".tsv"})
DELIMITERS = b",;\t|"  # a file's own is not known, and decides where quoted line ends are
ADDRESSES = ("http://", "https://", "push-")  # as the http source calls what it reads from


def check_record(stored: StoredLetter, raw: bytes) -> None:
    """Refuse `raw` as the record of `stored` if it is none, or several. Blocking. Raises ConfigError."""
    place = stored.letter.key.partition.name
    problem = _problem(place, raw, stored.letter.raw)
    if problem is not None:
        raise ConfigError(
            f"dead letter {stored.id} is one record of {place}, and the new content is not: {problem}; give one "
            "record, or --as-is if its source reads in another way than that name tells"
        )


def _problem(place: str, raw: bytes, former: bytes | None) -> str | None:
    if place.startswith(ADDRESSES) and not place.endswith("]"):  # a topic's partition may be called `push-me[0]`
        return _problem_of_json(raw)
    suffix = _suffix(place)
    if suffix in JSON_LINES:
        # A record of several lines came from another format, whatever the file is called.
        return None if former is not None and b"\n" in former.strip() else _problem_of_json_line(raw)
    return _problem_of_csv(raw, former) if suffix in SEPARATED else None


def _suffix(place: str) -> str:
    """The ending of a file's name that tells its format, not its compression."""
    from conveyord.storage.files import COMPRESSED_SUFFIXES

    path = Path(place)
    return Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix


def _problem_of_json(raw: bytes) -> str | None:
    from conveyord.engine.http.records import decoded_alone

    try:
        decoded_alone(raw, None)
    except RecordError as error:
        return error.reason
    return None


def _problem_of_json_line(raw: bytes) -> str | None:
    from conveyord.engine.json.decoder import JsonLinesDecoder

    decoder = JsonLinesDecoder()
    try:
        skip, layout = decoder.begin(raw)
    except RecordError as error:
        return error.reason
    lines = raw[skip:]
    count = len(decoder.starts(lines))
    if count != 1:
        return f"it is {count} lines, and each is a record"
    bad = decoder.decode(lines, decoder.infer(lines, layout), layout).bad
    return bad[0].reason if bad else None


def _problem_of_csv(raw: bytes, former: bytes | None) -> str | None:
    """Counts lines alone: with a header they are two, if the source reads one, and else one."""
    count = _lines(raw)
    before = None if former is None else _lines(former)
    if count > 2:
        return f"it is {count} lines, and a header and a record are two"
    if before == 2 and count == 1:
        return "it is one line, and was two: the file's header goes before the record"
    if before == 1 and count == 2:
        return "it is two lines, and was one: a record without a header"
    return None


def _lines(raw: bytes) -> int:
    """How many lines of cells there are at least, whatever the delimiter."""
    from conveyord.engine.csv.scan import Scanner

    scanners = [Scanner(delimiter=bytes([mark]), quote=b'"') for mark in DELIMITERS]
    return min(len(scanner.starts(raw, scanner.quoting(raw))) for scanner in scanners)
