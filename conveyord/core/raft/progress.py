"""What a leader knows of one peer, and how much it may send it.

| state | sends | on | becomes |
|---|---|---|---|
| PROBE | one message, then waits for its reply or for a heartbeat's | reply: agrees | REPLICATE |
| | | its entries are compacted | SNAPSHOT |
| REPLICATE | up to the limits in flight, without waiting | reply: rejected | PROBE |
| | | its entries are compacted | SNAPSHOT |
| SNAPSHOT | heartbeats | the stream ended, or the peer has caught up otherwise | PROBE |

How many bytes may be in flight is found anew with each heartbeat that is answered: twice as many as there were at most
since the one before, if anything was acknowledged. So a peer that takes more gets more, over a long way as well, and
one that falls silent is left with little, which it need not write all at once when it comes back, while others that
share its disk and processor wait (docs/benchmarks.md, "Raft"). It is what TCP does about a window that is not used up
(RFC 7661), by heartbeats.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, unique

from conveyord.core.raft.types import Options


@unique
class Mode(Enum):
    """See the table above."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Progress:
    """match: up to there its log is known to agree and to be on its disk. next: the index to send.

    acked_at: when it last answered, whatever it said. round: of the last heartbeat that it answered. told: the commit
    index of the last append to it.
    """

    next: int
    acked_at: float
    match: int = 0
    mode: Mode = Mode.PROBE
    round: int = 0
    told: int = 0
    is_waiting: bool = False
    fetching: int | None = None
    _inflight: deque[tuple[int, int]] = field(default_factory=deque)
    _inflight_bytes: int = 0
    _most_bytes: int = 0  # in flight since a heartbeat was answered
    _wished_bytes: int = 0
    _has_news: bool = False

    def limit_bytes(self, options: Options) -> int:
        """How much may be in flight to it."""
        return min(max(self._wished_bytes, options.inflight_bytes_min), options.inflight_bytes)

    def may_send(self, options: Options) -> bool:
        """Whether another append may go out now."""
        if self.fetching is not None or self.mode is Mode.SNAPSHOT:
            return False
        if self.mode is Mode.PROBE:
            return not self.is_waiting
        return not self._is_full(options)

    def _is_full(self, options: Options) -> bool:
        is_many = len(self._inflight) >= options.inflight_messages
        return is_many or self._inflight_bytes >= self.limit_bytes(options)

    def sent(self, last: int, size: int) -> None:
        """Entries up to `last` are on their way."""
        if self.mode is Mode.PROBE:
            self.is_waiting = True
            return
        self.next = last + 1
        self._inflight.append((last, size))
        self._inflight_bytes += size
        self._most_bytes = max(self._most_bytes, self._inflight_bytes)

    def agreed(self, index: int) -> bool:
        """It has everything up to `index`. Returns whether that is news."""
        if index < self.match:
            return False
        self.is_waiting = False
        while self._inflight and self._inflight[0][0] <= index:
            self._inflight_bytes -= self._inflight.popleft()[1]
        if index == self.match:
            return False
        self.match, self._has_news = index, True
        self.next = max(self.next, index + 1)
        return True

    def heard(self, options: Options) -> None:
        """It answers heartbeats. Let one more message out, even if all that are in flight have been lost."""
        self.is_waiting = False
        if self._has_news or not self._inflight:
            self._wished_bytes = 2 * self._most_bytes
        self._most_bytes, self._has_news = self._inflight_bytes, False
        while self._inflight and self._is_full(options):
            self._inflight_bytes -= self._inflight.popleft()[1]

    def replicate(self) -> None:
        """Send on without waiting for replies."""
        self._settle(Mode.REPLICATE, self.match + 1)

    def probe(self, next_index: int) -> None:
        """Send one message and see what it says."""
        self._settle(Mode.PROBE, max(next_index, self.match + 1))

    def snapshot(self) -> None:
        """Send nothing but heartbeats until a stream has ended."""
        self._settle(Mode.SNAPSHOT, self.next)

    def _settle(self, mode: Mode, next_index: int) -> None:
        self.mode, self.next, self.is_waiting, self.fetching = mode, next_index, False, None
        self._inflight.clear()
        self._inflight_bytes = self._most_bytes = self._wished_bytes = 0
