"""How long to wait before trying again, decided without a clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter.

    Full jitter (a wait drawn from the whole interval, not around its end) spreads writers that were
    refused by the same commit, so that they do not meet again on the next one.
    """

    base_seconds: float
    cap_seconds: float
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        assert 0 < self.base_seconds <= self.cap_seconds, self
        assert self.multiplier >= 1, self

    def delay_seconds(self, attempt: int, random: Random) -> float:
        """A wait before attempt number `attempt + 1`; `attempt` counts failures so far, from 1."""
        assert attempt >= 1, attempt
        steps = min(attempt - 1, 32)  # beyond this the cap has long been reached, and floats would overflow
        return random.uniform(0.0, min(self.cap_seconds, self.base_seconds * self.multiplier**steps))
