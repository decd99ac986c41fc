"""How much may pass by when: a bucket that fills at a steady rate and may owe what it gave too early."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Tokens come at `rate_per_second` until there are `capacity` of them; what passes pays with tokens.

    However it is asked: what was paid for by the end of the waits that `pay` names is, at any time t after the
    first call, at most `capacity + rate_per_second * t`.

    What a token stands for is the caller's: a row, a byte. Times are seconds of any clock that does not run
    backwards; a time before the last one counts as that. Starts full.
    """

    rate_per_second: float
    capacity: float
    balance: float = 0.0
    """What was there at the last time, below zero if it is owed. Set by the constructor."""
    _at_seconds: float | None = None

    def __post_init__(self) -> None:
        assert self.rate_per_second > 0, f"a rate must exceed 0, got {self.rate_per_second}"
        assert self.capacity > 0, f"a capacity must exceed 0, got {self.capacity}"
        self.balance = self.capacity

    def pay(self, tokens: float, *, now_seconds: float) -> float:
        """Take `tokens`, more than there are if need be, and return the seconds until they have come.

        What is paid for must wait so long. Who pays next waits behind it.
        """
        self._fill(now_seconds)
        self.balance -= tokens
        return 0.0 if self.balance >= 0 else -self.balance / self.rate_per_second

    def affordable(self, *, each: float, now_seconds: float) -> int | None:
        """How many things of the cost `each` could be paid for without a wait. None if there is no limit.

        A thing that costs more than the capacity counts as payable when the bucket is full, or it never could be;
        paying for it leaves a debt.
        """
        self._fill(now_seconds)
        if each <= 0:
            return None
        if each > self.capacity:
            return 1 if self.balance >= self.capacity else 0
        return max(0, math.floor(self.balance / each))

    def _fill(self, now_seconds: float) -> None:
        if self._at_seconds is not None and now_seconds > self._at_seconds:
            came = (now_seconds - self._at_seconds) * self.rate_per_second
            self.balance = min(self.capacity, self.balance + came)
        if self._at_seconds is None or now_seconds > self._at_seconds:
            self._at_seconds = now_seconds
