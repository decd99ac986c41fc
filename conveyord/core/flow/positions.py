"""Positions: how far each partition of each source has been read, and how that is compared.

A *partition* is an ordered run of records that can be read again from an offset: one file, one
Kafka partition. A `Span` is what one batch covers of one partition; `Positions` is where to go on
in all of them, and is what a fence stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Partition(NamedTuple):
    """One ordered run of records. `source` is the stage's name, `name` the source's own word for it."""

    source: str
    name: str


@dataclass(frozen=True, slots=True)
class Position:
    """The next offset to read, and the `mark` by which the partition is recognised again.

    The mark is opaque here: a file source stores a digest of the file's first bytes, a Kafka source
    the topic's incarnation. A partition whose mark no longer matches is another partition under an
    old name; the source must refuse it or follow its policy, never go on silently.
    """

    offset: int
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """The half-open range `[first, end)` of one partition, with the mark to store at its end."""

    partition: Partition
    first: int
    end: int
    mark: str = ""

    def __post_init__(self) -> None:
        assert 0 <= self.first <= self.end, self

    @property
    def position(self) -> Position:
        return Position(self.end, self.mark)


class Positions(Mapping[Partition, Position]):
    """An immutable map from partition to position. A partition that is absent was never read.

    `states` holds, by source, a text that the source wants back when it goes on from here, such as the
    types it has settled on. It belongs to the positions: both are stored and read together.
    """

    __slots__ = ("_by_partition", "states")

    def __init__(
        self, by_partition: Mapping[Partition, Position] | None = None, states: Mapping[str, str] | None = None
    ) -> None:
        self._by_partition: dict[Partition, Position] = dict(by_partition or {})
        self.states: dict[str, str] = dict(states or {})

    def __getitem__(self, partition: Partition) -> Position:
        return self._by_partition[partition]

    def __iter__(self) -> Iterator[Partition]:
        return iter(self._by_partition)

    def __len__(self) -> int:
        return len(self._by_partition)

    def __repr__(self) -> str:
        return f"Positions({self._by_partition!r})"

    def advanced(self, spans: Iterable[Span]) -> Positions:
        """These positions after `spans`, in order. Raises ValueError if a span leaves a gap or goes back.

        A gap would mean rows that nobody wrote; going back would mean rows written twice. Both are
        bugs upstream, and storing such a position would hide them for ever.
        """
        moved = dict(self._by_partition)
        for span in spans:
            known = moved.get(span.partition)
            if known is not None and span.first != known.offset:
                raise ValueError(f"{span.partition}: span starts at {span.first}, position is {known.offset}")
            moved[span.partition] = span.position
        return Positions(moved, self.states)

    def covers(self, span: Span) -> bool:
        """Whether everything in `span` lies below these positions."""
        known = self._by_partition.get(span.partition)
        return known is not None and span.end <= known.offset

    def of_source(self, source: str) -> dict[str, Position]:
        """The positions of one source by partition name."""
        return {p.name: position for p, position in self._by_partition.items() if p.source == source}
