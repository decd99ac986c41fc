"""The fence: what a table says about how far a pipeline has been written to it.

It is stored as a table property by the very commit that adds the rows, so a restart needs nothing
but the table. Batches are numbered 1, 2, 3 without holes; fence `n` says that the rows of batches
1 to n are in the table and that reading goes on at `positions`.

A job over a hundred thousand files has as many positions, and a property is rewritten by every
commit. So positions that no longer move are moved to an *archive*, an immutable object beside the
table that the property names by path and digest. What moves is decided here; who writes it is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from conveyord.core.errors import Corrupt
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import counted

VERSION = 1
INLINE_MAX = 64  # positions kept in the property while they are few: about 10 KB of JSON
INLINE_SHARE = 8  # the archive is rewritten when the rest reaches an eighth of it, so its cost amortises
INLINE_CEILING = 1024  # and at this many at the latest: 150 KB in every metadata file is what we accept
KEPT_INLINE = 32  # the newest stay inline after a move: they are likely to advance again


def fence_key(pipeline: str) -> str:
    """The table property that holds the fence of `pipeline` (`namespace/name`)."""
    return f"conveyord.{pipeline}.fence"


def batch_key(pipeline: str) -> str:
    """The summary key by which a table snapshot says which batch of `pipeline` it added."""
    return f"conveyord.{pipeline}.batch-seq"


@dataclass(frozen=True, slots=True)
class ArchiveRef:
    """Where archived positions lie: an object of `count` positions whose bytes have this SHA-256."""

    location: str
    sha256: str
    count: int


@dataclass(frozen=True, slots=True)
class Fence:
    """The state after batch `n`.

    inline: positions written in the property itself, least recently moved first; they override
    `archived`. archived: contents of `archive`, once loaded. tally and rows are cumulative over all
    batches. states: what each source wants back with its positions (see `Positions`). writer: token of
    the run that committed batch n, so that two runs of one pipeline can tell their batches apart.
    sequence: the table's sequence number of that commit.
    """

    n: int
    inline: Positions = field(default_factory=Positions)
    archived: Positions = field(default_factory=Positions)
    archive: ArchiveRef | None = None
    tally: Tally = field(default_factory=Tally)
    rows: int = 0
    states: Mapping[str, str] = field(default_factory=dict)
    writer: str = ""
    sequence: int = 0

    @property
    def positions(self) -> Positions:
        """Where to go on in every partition. The archive must have been loaded."""
        assert self.is_loaded, "positions asked of a fence whose archive was not loaded"
        return Positions({**self.archived, **self.inline}, self.states)

    @property
    def is_loaded(self) -> bool:
        return self.archive is None or len(self.archived) == self.archive.count

    def advanced(
        self, spans: Iterable[Span], tally: Tally, rows: int, states: Mapping[str, str] | None = None
    ) -> Fence:
        """The fence of the next batch, which covers `spans` and adds `rows` rows to the table.

        `tally` and `rows` are of this batch alone; `states` replaces those of the sources it names. Raises
        ValueError if a span leaves a gap or goes back: such a fence would hide lost or doubled rows for ever.
        """
        assert self.is_loaded, "advanced a fence whose archive was not loaded"
        moved = dict(self.inline)
        for span in spans:
            known = moved.pop(span.partition, None) or self.archived.get(span.partition)
            if known is not None and span.first != known.offset:
                raise ValueError(f"{span.partition}: span starts at {span.first}, fence is at {known.offset}")
            moved[span.partition] = span.position
        return replace(
            self,
            n=self.n + 1,
            inline=Positions(moved),
            tally=self.tally + tally,
            rows=self.rows + rows,
            states={**self.states, **(states or {})},
        )

    def same_batch(self, other: Fence) -> bool:
        """Whether both are the fence of one batch by one writer, wherever and whenever it landed."""
        return (self.n, self.writer, self.inline, self.archive, self.tally, self.rows) == (
            other.n,
            other.writer,
            other.inline,
            other.archive,
            other.tally,
            other.rows,
        )

    def outgrown(self) -> Positions | None:
        """All positions that belong into a new archive, or None while the inline ones are few enough."""
        limit = min(max(INLINE_MAX, len(self.archived) // INLINE_SHARE), INLINE_CEILING)
        if len(self.inline) <= limit:
            return None
        oldest = list(self.inline.items())[:-KEPT_INLINE]
        return Positions({**self.archived, **dict(oldest)})

    def with_archive(self, ref: ArchiveRef, archived: Positions) -> Fence:
        """This fence with `archived` stored as `ref`: what stands there unchanged leaves the property."""
        assert ref.count == len(archived)
        kept = {p: position for p, position in self.inline.items() if archived.get(p) != position}
        return replace(self, inline=Positions(kept), archived=archived, archive=ref)

    def loaded(self, body: bytes) -> Fence:
        """This fence with its archive's positions, read from `body`. Raises Corrupt if the digest differs."""
        assert self.archive is not None
        if hashlib.sha256(body).hexdigest() != self.archive.sha256:
            raise Corrupt(
                f"fence archive {self.archive.location}: its {counted(len(body), 'byte')} have another digest than the"
                " fence names; restore the file from a backup of the warehouse, positions cannot be made up"
            )
        archived = decode_archive(body, where=self.archive.location)
        if len(archived) != self.archive.count:
            raise Corrupt(
                f"fence archive {self.archive.location}: holds {counted(len(archived), 'position')}, the fence says "
                f"{self.archive.count}; restore the file from a backup of the warehouse"
            )
        return replace(self, archived=archived)


def encode(fence: Fence) -> str:
    """The property's value: one line of JSON."""
    body: dict[str, Any] = {
        "version": VERSION,
        "n": fence.n,
        "rows": fence.rows,
        "tally": list(astuple(fence.tally)),
        "writer": fence.writer,
        "sequence": fence.sequence,
        "positions": _rows_of(fence.inline),
    }
    if fence.states:
        body["states"] = dict(fence.states)
    if fence.archive is not None:
        ref = fence.archive
        body["archive"] = {"location": ref.location, "sha256": ref.sha256, "count": ref.count}
    return json.dumps(body, separators=(",", ":"))


def decode(text: str, *, where: str) -> Fence:
    """Read a property's value. The archive, if there is one, is named but not loaded.

    `where` is the property and its table, for messages. Raises Corrupt for anything that `encode`
    of this version cannot have written: guessing a position loses rows or writes them twice.
    """
    remedy = "restore the property from an earlier metadata file, or upgrade conveyord if a newer one wrote it"
    try:
        body = json.loads(text)
    except ValueError as error:
        raise Corrupt(f"{where}: not JSON ({error}); {remedy}") from error
    version = body.get("version") if isinstance(body, dict) else None
    if version != VERSION:
        raise Corrupt(f"{where}: fence version is {version!r}, this program reads {VERSION}; {remedy}")
    try:
        tally = Tally(*(_count(number) for number in body["tally"]))
        archive = body.get("archive")
        ref = None
        if archive is not None:
            ref = ArchiveRef(_text(archive["location"]), _text(archive["sha256"]), _count(archive["count"]))
        return Fence(
            n=_count(body["n"]),
            inline=_positions_of(body["positions"]),
            archive=ref,
            tally=tally,
            rows=_count(body["rows"]),
            states={_text(source): _text(state) for source, state in body.get("states", {}).items()},
            writer=_text(body["writer"]),
            sequence=_count(body["sequence"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{where}: a field is missing or wrong ({error!r}); {remedy}") from error


def encode_archive(archived: Positions) -> tuple[bytes, str]:
    """An archive's bytes and their SHA-256. Sorted, so that equal positions give equal bytes."""
    lines = [json.dumps(row, separators=(",", ":")) for row in sorted(_rows_of(archived))]
    body = ("\n".join([json.dumps({"version": VERSION}), *lines]) + "\n").encode("ascii")
    return body, hashlib.sha256(body).hexdigest()


def decode_archive(body: bytes, *, where: str) -> Positions:
    """The positions in an archive's bytes. Raises Corrupt if this version cannot have written them."""
    try:
        head, *rows = [json.loads(line) for line in body.decode("ascii").rstrip("\n").split("\n")]
        if head != {"version": VERSION}:
            raise ValueError(f"archive starts with {head!r}")
        return _positions_of(rows)
    except (TypeError, ValueError) as error:
        raise Corrupt(f"fence archive {where}: unreadable ({error}); restore it from a backup") from error


def _rows_of(positions: Positions) -> list[list[str | int]]:
    return [[p.source, p.name, position.offset, position.mark] for p, position in positions.items()]


def _positions_of(rows: Any) -> Positions:
    found: dict[Partition, Position] = {}
    for source, name, offset, mark in rows:
        partition = Partition(_text(source), _text(name))
        if partition in found:
            raise ValueError(f"{partition} is listed twice")
        found[partition] = Position(_count(offset), _text(mark))
    return Positions(found)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:  # bool is an int to isinstance, and never a count
        raise ValueError(f"{value!r} is not a count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value
