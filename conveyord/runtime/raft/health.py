"""Whether a node's disk takes writes in time and has room: a node that it is sick of must not lead.

A leader whose disk hangs would go on with its heartbeats for ever, and nobody else would be elected (hashicorp/raft
issues 503, 612 and 666). So the oldest write that waits has an age, and beyond an election timeout the disk counts as
stalled. It counts as full when the log had to give up its reserve, or the state has no room.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from conveyord.core.raft.messages import DiskHealth, Event
from conveyord.runtime.raft.applying import Applying
from conveyord.runtime.raft.disk import Disk
from conveyord.runtime.raft.ports import LogPort

log = structlog.get_logger(__name__)

LOOKS_PER_TIMEOUT = 8  # so that a stall is known after 1.13 timeouts at the latest
RENEW_SECONDS = 5.0  # between two attempts to set space aside again


class Health:
    """For the trio thread."""

    def __init__(
        self, log: LogPort, disk: Disk, applying: Applying, timeout_seconds: float, tell: Callable[[Event], None]
    ) -> None:
        """timeout_seconds: of elections. tell: puts an event into the node's mailbox."""
        self._log = log
        self._disk = disk
        self._applying = applying
        self._timeout_seconds = timeout_seconds
        self._tell = tell
        self.trouble = ""
        """Why the disk is sick; empty if it is well."""

    async def run(self) -> None:
        """Look, for ever."""
        renewed_at = -RENEW_SECONDS
        while True:
            found = self._found()
            if bool(found) != bool(self.trouble):
                self._tell(DiskHealth(is_well=not found))
                if found:
                    log.error("the disk is sick: this node leads nothing until it is well", reason=found)
                else:
                    log.info("the disk is well again", before=self.trouble)
            self.trouble = found
            now = trio.current_time()
            if not self._log.has_reserve and now - renewed_at >= RENEW_SECONDS:
                renewed_at = now
                self._disk.renew_reserve()
            await trio.sleep(self._timeout_seconds / LOOKS_PER_TIMEOUT)

    def _found(self) -> str:
        waiting_seconds = self._disk.waiting_seconds
        if waiting_seconds > self._timeout_seconds:
            return f"a write waits for {waiting_seconds:.1f} s, more than an election timeout; check the disk"
        if not self._log.has_reserve:
            return "the disk of the log is full; free space"
        return "the disk of the state is full; free space" if self._applying.is_full else ""
