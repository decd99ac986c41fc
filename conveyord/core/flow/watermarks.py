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
