"""Watermarks where streams come together: the lowest over the inputs that are not idle.

An input is idle while nothing came from it for some time, also if nothing ever did: a source without
records must not hold event time back for ever. Time comes from the caller.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Input:
    heard_at: float
    micros: int | None = None
    ended: bool = False


class WatermarkMerge:
    """The watermark of `inputs` inputs together. It never goes back."""

    def __init__(self, inputs: int, *, idle_seconds: float, now: float) -> None:
        self._idle_seconds = idle_seconds
        self._inputs = [_Input(now) for _ in range(inputs)]
        self._emitted: int | None = None

    def heard(self, number: int, now: float) -> None:
        """Something other than a watermark came from an input."""
        self._inputs[number].heard_at = now

    def advance(self, number: int, micros: int, now: float) -> int | None:
        """A watermark came from an input. Returns the merged one if it moved."""
        source = self._inputs[number]
        source.heard_at = now
        source.micros = micros if source.micros is None else max(source.micros, micros)
        return self._merged(now)

    def end(self, number: int, now: float) -> int | None:
        """An input ended: nothing waits for it any more. Returns the merged watermark if it moved."""
        self._inputs[number].ended = True
        return self._merged(now)

    def _merged(self, now: float) -> int | None:
        active = [one for one in self._inputs if not one.ended and now - one.heard_at < self._idle_seconds]
        known = [one.micros for one in active if one.micros is not None]
        if not known or len(known) < len(active):
            return None
        lowest = min(known)
        if self._emitted is not None and lowest <= self._emitted:
            return None
        self._emitted = lowest
        return lowest


class PartitionWatermarks:
    """The watermark of a source with partitions, each of which is about in order: the lowest over those that are not
    idle of the newest event time so far, less the lateness that is allowed. It never goes back.

    A partition from which nothing came yet holds it too until it is idle, since what comes may be old.
    """

    def __init__(self, *, lateness_micros: int, idle_seconds: float) -> None:
        self._lateness_micros = lateness_micros
        self._idle_seconds = idle_seconds
        self._inputs: dict[str, _Input] = {}
        self._emitted: int | None = None

    def reads(self, partition: str, since: float) -> None:
        """A partition is read since a time. Nothing happens if that is known."""
        self._inputs.setdefault(partition, _Input(since))

    def saw(self, partition: str, micros: int, now: float) -> int | None:
        """Records came from a partition, the newest with this event time. Returns the watermark if it moved."""
        source = self._inputs.setdefault(partition, _Input(now))
        source.heard_at = now
        source.micros = micros if source.micros is None else max(source.micros, micros)
        active = [one.micros for one in self._inputs.values() if now - one.heard_at < self._idle_seconds]
        known = [newest for newest in active if newest is not None]
        if not known or len(known) < len(active):
            return None
        lowest = min(known) - self._lateness_micros
        if self._emitted is not None and lowest <= self._emitted:
            return None
        self._emitted = lowest
        return lowest
