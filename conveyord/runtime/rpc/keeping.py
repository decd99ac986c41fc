"""Notices a side that is gone, dawdles, or does not read. It looks now and then, so that a frame costs nothing."""

from __future__ import annotations

from conveyord.core.wire.frames import FrameDecoder
from conveyord.core.wire.heads import Ping
from conveyord.runtime.rpc.limits import Limits
from conveyord.runtime.rpc.outbox import Outbox, Ticket
from conveyord.runtime.rpc.outcomes import Ending


class Keeper:
    """`receipts` and `frames` are counted by the one who reads; what did not change between two looks stood still."""

    def __init__(self, decoder: FrameDecoder, outbox: Outbox, limits: Limits) -> None:
        self.receipts = 0
        self.is_paused = False  # whether it is this side that does not read
        self.frames = 0
        self._decoder = decoder
        self._outbox = outbox
        self._limits = limits
        self._pings = 0
        self._ping: Ticket | None = None
        self._ping_written: float | None = None
        self._heard = (-1, 0.0)  # receipts, and when they were seen first
        self._framed = (-1, 0.0)  # likewise the frames that were whole when the one that is not had begun
        self._progressed = (-1, 0.0)  # likewise the bytes that the other side has taken
        self._looked: float | None = None

    def look(self, now: float) -> Ending | None:
        """Ask for a sign of life if nothing came; tell if the connection should end. now: in seconds."""
        self._forgive(now)
        return self._slow_frame(now) or self._not_reading(now) or self._silent(now)

    def _forgive(self, now: float) -> None:
        """Not hold it against the other side if this process stood still: what came meanwhile has not been read yet."""
        late = 0.0 if self._looked is None else now - self._looked - self._limits.tick_seconds
        self._looked = now
        if late > self._limits.tick_seconds:
            self._heard = (self._heard[0], self._heard[1] + late)
            self._framed = (self._framed[0], self._framed[1] + late)
            self._progressed = (self._progressed[0], self._progressed[1] + late)
            if self._ping_written is not None:
                self._ping_written += late

    def _slow_frame(self, now: float) -> Ending | None:
        expected = self._decoder.expected_bytes
        if not expected:
            self._framed = (-1, now)
        elif self._framed[0] != self.frames:
            self._framed = (self.frames, now)
        else:
            allowed = self._limits.frame_seconds + expected / self._limits.frame_bytes_per_second_min
            if now - self._framed[1] > allowed:
                return Ending("slow_frame", f"a frame of {expected} bytes was not whole within {allowed:g} s")
        return None

    def _not_reading(self, now: float) -> Ending | None:
        if self._outbox.is_idle or self._progressed[0] != self._outbox.progress:
            self._progressed = (self._outbox.progress, now)
        elif now - self._progressed[1] > self._limits.stall_seconds:
            seconds = self._limits.stall_seconds
            return Ending("not_reading", f"the other side read nothing for {seconds:g} s while something waited for it")
        return None

    def _silent(self, now: float) -> Ending | None:
        if self._heard[0] != self.receipts or self.is_paused:
            self._heard = (self.receipts, now)
            self._ping = self._ping_written = None
        elif self._ping is None:
            if now - self._heard[1] >= self._limits.ping_seconds:
                self._pings += 1
                self._ping = Ticket(self._outbox.framed(Ping(self._pings)))
                self._outbox.put_ticket(self._ping)
                self._outbox.wake()
        elif self._ping_written is None:
            # From when it was written: behind a large body it may wait for a while. If it stands still the stall tells.
            self._ping_written = now if self._ping.is_written else None
        elif now - self._ping_written > self._limits.pong_seconds:
            seconds = self._limits.ping_seconds + self._limits.pong_seconds
            return Ending("silent", f"nothing came from the other side for {seconds:g} s, nor an answer to a ping")
        return None
