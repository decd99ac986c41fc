"""What a leader knows of one peer, and how much it may send it.

| state | sends | on | becomes |
|---|---|---|---|
| PROBE | one message, then waits for its reply or for a heartbeat's | reply: agrees | REPLICATE |
| | | its entries are compacted | SNAPSHOT |
| REPLICATE | up to the limits in flight, without waiting | reply: rejected | PROBE |
| | | its entries are compacted | SNAPSHOT |
| SNAPSHOT | heartbeats | the stream ended, or the peer has caught up otherwise | PROBE |
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

    def limit_bytes(self, options: Options, commit: int) -> int:
        """How much may be in flight to it, with what is committed up to `commit`."""
        is_behind = self.match + options.catch_up_entries < commit
        return options.catch_up_bytes if is_behind else options.inflight_bytes

    def may_send(self, options: Options, commit: int) -> bool:
        """Whether another append may go out now."""
        if self.fetching is not None or self.mode is Mode.SNAPSHOT:
            return False
        if self.mode is Mode.PROBE:
            return not self.is_waiting
        return not self._is_full(options, commit)

    def _is_full(self, options: Options, commit: int) -> bool:
        is_many = len(self._inflight) >= options.inflight_messages
        return is_many or self._inflight_bytes >= self.limit_bytes(options, commit)

    def sent(self, last: int, size: int) -> None:
        """Entries up to `last` are on their way."""
        if self.mode is Mode.PROBE:
            self.is_waiting = True
            return
        self.next = last + 1
        self._inflight.append((last, size))
        self._inflight_bytes += size

    def agreed(self, index: int) -> bool:
        """It has everything up to `index`. Returns whether that is news."""
        if index < self.match:
            return False
        self.is_waiting = False
        while self._inflight and self._inflight[0][0] <= index:
            self._inflight_bytes -= self._inflight.popleft()[1]
        if index == self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        return True

    def heard(self, options: Options, commit: int) -> None:
        """It answers heartbeats. Let one more message out, even if all that are in flight have been lost."""
        self.is_waiting = False
        while self._inflight and self._is_full(options, commit):
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
        self._inflight_bytes = 0
