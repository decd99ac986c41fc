"""What a connection may take, and what is counted when it wants more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MIB = 1024 * 1024
FRAME_BYTES_MIN = 32 * 1024  # what every side takes once it has met another: the longest sentence must fit


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one side. Seconds are met within a quarter of the shortest of ping, pong, frame and stall."""

    connections_max: int = 512  # of a server, the ones that have not been admitted yet among them
    requests_max: int = 1024  # open ones of the other side, streams among them, on one connection
    frame_bytes_max: int = 16 * MIB  # head and body
    queued_bytes_max: int = 64 * MIB  # to be written on one connection; from half of it on, who can wait does
    messages_bytes_max: int = 16 * MIB  # queued, beyond which one-way messages are dropped
    hello_seconds: float = 5.0  # for TLS and both hellos
    frame_seconds: float = 10.0  # for a frame that began to end, and
    frame_bytes_per_second_min: int = MIB  # a second more for each of these
    ping_seconds: float = 3.0  # without a byte from the other side, before it is asked
    pong_seconds: float = 6.0  # for the answer
    stall_seconds: float = 10.0  # in which the other side must read something, if there is something for it
    stream_items: int = 64  # credit that is given for a stream
    stream_bytes: int = 4 * MIB

    def __post_init__(self) -> None:
        assert 0 < self.messages_bytes_max <= self.queued_bytes_max, self
        assert self.frame_bytes_max >= FRAME_BYTES_MIN, self
        assert self.frame_bytes_max <= self.queued_bytes_max // 2, self  # or one large answer would end a connection
        assert min(self.connections_max, self.requests_max, self.stream_items, self.stream_bytes) > 0, self

    @property
    def tick_seconds(self) -> float:
        """How often a connection is looked at."""
        return min(self.ping_seconds, self.pong_seconds, self.frame_seconds, self.stall_seconds) / 4


@dataclass(slots=True)
class Counters:
    """What was refused, dropped and cut off, each by a reason of one word. One object may serve many connections."""

    refused_connections: Counter[str] = field(default_factory=Counter)
    refused_frames: Counter[str] = field(default_factory=Counter)
    refused_requests: Counter[str] = field(default_factory=Counter)
    failed_requests: Counter[str] = field(default_factory=Counter)
    dropped_messages: Counter[str] = field(default_factory=Counter)
    cancelled_calls: Counter[str] = field(default_factory=Counter)
    ended_connections: Counter[str] = field(default_factory=Counter)
