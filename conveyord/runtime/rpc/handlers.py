"""What a node answers: handlers by name, of three kinds."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from conveyord.core.wire.frames import Body
from conveyord.core.wire.heads import METHOD_CHARS_MAX, Hello


@dataclass(frozen=True, slots=True)
class Admission:
    """What the one who admits knows of the other side (a role, say); handlers see it as `caller.admission`."""

    role: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remote:
    """Who is at the other end. names: the node ids of its certificate; None without mutual TLS."""

    hello: Hello
    protocol: int
    names: frozenset[str] | None = None
    admission: Admission = field(default_factory=Admission)

    @property
    def node(self) -> str:
        """Its node id; empty for a client."""
        return self.hello.node


class Answer(NamedTuple):
    """A payload, in msgpack as a rule, and an attachment that is passed on untouched."""

    payload: bytes = b""
    body: Body = b""


class Incoming:
    """A request or a one-way message. deadline: in trio's time; infinite for a message."""

    __slots__ = ("body", "caller", "deadline", "method", "payload")

    def __init__(self, method: str, payload: bytes, body: Body, caller: Remote, deadline: float) -> None:
        self.method = method
        self.payload = payload
        self.body = body
        self.caller = caller
        self.deadline = deadline


class Outlet(Protocol):
    """Where a stream handler puts its items."""

    async def send(self, payload: bytes, body: Body = b"") -> None:
        """Send an item, once there is credit for it. `body` must not change afterwards."""
        ...


Replied = Answer | bytes | None
Inline = Callable[[Incoming], Replied]
Unary = Callable[[Incoming], Awaitable[Replied]]
Streaming = Callable[[Incoming, Outlet], Awaitable[None]]


class Mode(enum.Enum):
    """How a handler is run."""

    INLINE = enum.auto()
    UNARY = enum.auto()
    STREAM = enum.auto()


class Handlers:
    """The methods of a node. To be complete before it is used.

    inline: a plain function, run by the task that reads: it must return at once. What it answers is small: while more
    answers are queued than may be nothing is read, and if both sides do that to each other the connection ends.
    unary: a task for each request (tasks are used again, one request after the other, so a handler must leave its
    context variables as it found them). stream: likewise, and sends items as the credit of the caller allows.
    One-way messages are taken by inline and unary handlers; what they return is dropped.
    """

    def __init__(self) -> None:
        self.by_method: dict[str, tuple[Mode, Any]] = {}
        self.after_frames: Callable[[], None] = _nothing
        """Called by the task that reads, once it has handed out all frames that came together."""

    def inline(self, method: str, handler: Inline) -> None:
        """Answer `method` within the task that reads."""
        self._add(method, Mode.INLINE, handler)

    def unary(self, method: str, handler: Unary) -> None:
        """Answer each request for `method` in a task of its own."""
        self._add(method, Mode.UNARY, handler)

    def stream(self, method: str, handler: Streaming) -> None:
        """Answer each request for `method` by items."""
        self._add(method, Mode.STREAM, handler)

    def _add(self, method: str, mode: Mode, handler: object) -> None:
        assert 0 < len(method) <= METHOD_CHARS_MAX, method
        assert method not in self.by_method, method
        self.by_method[method] = (mode, handler)


def _nothing() -> None:
    pass
