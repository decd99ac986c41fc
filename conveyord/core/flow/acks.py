"""Acknowledgements: which spans are settled, and how far each partition is settled without a hole.

Batches may be settled in any order (sinks differ in speed, retries overtake), but only a contiguous
floor may ever be committed upstream: a position above an unsettled span would skip its records after
a restart. Law 3 of the design: only an acknowledgement moves a position.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from conveyord.core.flow.positions import Partition, Position, Positions, Span


@dataclass(slots=True, eq=False)
class _Entry:
    span: Span
    settled: bool = False


@dataclass(slots=True)
class _Lane:
    """The unsettled spans of one partition, oldest first."""

    entries: deque[_Entry] = field(default_factory=deque)
    tail: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """What `AckLedger.track` hands out for one batch: settle it once, when every sink has the batch."""

    number: int
    entries: tuple[_Entry, ...]


class AckLedger:
    """Tracks batches in flight. Not thread-safe: one task owns it.

    Spans of one partition must be tracked in order and without a gap; that is what makes the floor
    meaningful, so a violation raises ValueError at once.
    """

    def __init__(self) -> None:
        self._lanes: dict[Partition, _Lane] = {}
        self._floor: dict[Partition, Position] = {}
        self._open: dict[int, Ticket] = {}
        self._next_number = 0

    def track(self, spans: tuple[Span, ...]) -> Ticket:
        """Register a batch before it is sent. Raises ValueError on a gap or a step back."""
        entries = []
        for span in spans:
            lane = self._lanes.setdefault(span.partition, _Lane())
            if lane.tail is not None and span.first != lane.tail:
                raise ValueError(f"{span.partition}: tracked up to {lane.tail}, next span starts at {span.first}")
            lane.tail = span.end
            entry = _Entry(span)
            lane.entries.append(entry)
            entries.append(entry)
        ticket = Ticket(self._next_number, tuple(entries))
        self._next_number += 1
        self._open[ticket.number] = ticket
        return ticket

    def settle(self, ticket: Ticket) -> dict[Partition, Position]:
        """Mark a batch durable everywhere and return the partitions whose floor moved.

        Settling twice is a bug of the caller and raises KeyError: a second settlement could stand for
        a batch that is still in flight.
        """
        del self._open[ticket.number]
        moved: dict[Partition, Position] = {}
        for entry in ticket.entries:
            entry.settled = True
            lane = self._lanes.get(entry.span.partition)
            if lane is None:  # revoked meanwhile: the new owner may be behind us, so nothing moves
                continue
            while lane.entries and lane.entries[0].settled:
                settled = lane.entries.popleft()
                moved[settled.span.partition] = settled.span.position
        self._floor.update(moved)
        return moved

    def revoke(self, partition: Partition) -> None:
        """Forget a partition that was taken away. Later settlements of its spans move nothing."""
        self._lanes.pop(partition, None)
        self._floor.pop(partition, None)

    @property
    def floor(self) -> Positions:
        """The contiguous settled positions of every partition that has one."""
        return Positions(self._floor)

    @property
    def in_flight(self) -> int:
        """How many batches are tracked and not settled."""
        return len(self._open)

    @property
    def oldest_in_flight(self) -> int | None:
        """The number of the oldest unsettled ticket, or None."""
        return next(iter(self._open), None)
