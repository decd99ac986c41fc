"""Client sessions: a command that is proposed again is applied once, and its first reply is given again.

A client registers by a command of its own; the index of that entry is its session. Every other command carries the
session, a number that the client chose once for it, and the lowest number whose reply it still waits for. The table is
part of the replicated state: it is in every snapshot, and what it decides depends on nothing but the log (Ongaro's
thesis, 6.3; who must go goes by position in the log).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVarTuple

import msgpack

from conveyord.core.errors import ConveyordError

Ts = TypeVarTuple("Ts")
SESSIONS_MAX = 10_000
WINDOW = 1_024
"""How many replies are kept for one client: it may not have more commands under way."""


class SessionExpired(ConveyordError):
    """The session is not known any more: whether the command was applied in it cannot be told. Register anew."""

    code = "SESSION_EXPIRED"


class WindowExceeded(ConveyordError):
    """A client has more commands under way than replies are kept for. The command was not applied."""

    code = "SESSION_WINDOW"


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the table, to be stored in this order.

    gone: sessions that went. used: (session, floor, use, replies by number), new or changed; the highest `use` was used
    last. `replies` are those of the table: to be stored at once.
    """

    gone: tuple[int, ...]
    used: tuple[tuple[int, int, int, dict[int, bytes]], ...]


@dataclass(slots=True)
class _Session:
    """replies: by number, those that the client may ask for again. floor: below it, it never will; replies that are
    still there are freed many at once.

    use: when it was last used after another one was, as a count. is_stored: whether any `Changes` told of it.
    """

    floor: int = 0
    replies: dict[int, bytes] = field(default_factory=dict)
    use: int = 0
    is_stored: bool = False

    def free(self) -> dict[int, bytes]:
        """Forget the replies below the floor; returns those that are kept."""
        floor = self.floor
        self.replies = {number: reply for number, reply in self.replies.items() if number >= floor}
        return self.replies


class Sessions:
    """The table, least recently used first. Not thread-safe."""

    def __init__(self, *, sessions_max: int = SESSIONS_MAX, window: int = WINDOW) -> None:
        """Both limits must be the same at every replica."""
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self._sessions_max = sessions_max
        self._window = window
        self._uses = 0
        self._latest = 0  # the session that was used last
        self._changed: dict[int, None] = {}  # a set that keeps its order
        self._gone = list[int]()

    def __len__(self) -> int:
        return len(self._sessions)

    def register(self, index: int) -> int:
        """Open the session that the entry at `index` asks for. The least recently used one may have to go for it."""
        self._sessions[index] = _Session()
        self._use(index, self._sessions[index])
        if len(self._sessions) > self._sessions_max:
            oldest, found = self._sessions.popitem(last=False)
            self._changed.pop(oldest, None)
            if found.is_stored:
                self._gone.append(oldest)
        return index

    def apply(self, session: int, number: int, ack_below: int, execute: Callable[[*Ts], bytes], *args: *Ts) -> bytes:
        """Run `execute` unless command `number` was run before, and return its reply, be it the first or again.

        args: what it is given. Raises SessionExpired where that cannot be told, and WindowExceeded, both before that.
        """
        found = self._sessions.get(session)
        if found is None:
            raise SessionExpired(f"session {session} has expired; register anew, and look before proposing again")
        if session != self._latest or session not in self._changed:
            self._use(session, found)
        floor = found.floor
        if number < floor:
            raise SessionExpired(f"session {session}: the reply to command {number} was acknowledged and is gone")
        if number in found.replies:
            return found.replies[number]
        if ack_below > floor:
            found.floor = min(number, ack_below)
        replies = found.replies
        if len(replies) >= self._window and len(replies := found.free()) >= self._window:
            raise WindowExceeded(
                f"session {session} has {len(replies)} replies that it did not acknowledge, at most "
                f"{self._window}; wait for some of them"
            )
        reply = replies[number] = execute(*args)
        return reply

    def take_changes(self) -> Changes:
        """What became of the table since the last time."""
        used = []
        for session in self._changed:
            found = self._sessions[session]
            used.append((session, found.floor, found.use, found.free()))
            found.is_stored = True
        changes = Changes(tuple(self._gone), tuple(used))
        self._changed, self._gone = {}, []
        return changes

    def restore(self, used: Iterable[tuple[int, int, int, dict[int, bytes]]]) -> None:
        """Begin with what `Changes` told, in the order of their last use."""
        self._sessions = OrderedDict((key, _Session(floor, replies, use, True)) for key, floor, use, replies in used)
        self._latest, found = next(reversed(self._sessions.items()), (0, None))
        self._uses = found.use if found is not None else 0
        self._changed, self._gone = {}, []

    def dump(self) -> bytes:
        """The table, in the order of use: the same bytes at every replica."""
        rows = [(key, one.floor, sorted(one.free().items())) for key, one in self._sessions.items()]
        return bytes(msgpack.packb(rows))

    def load(self, data: bytes) -> None:
        """The inverse of `dump`."""
        rows = msgpack.unpackb(data)
        self.restore([(key, floor, use, dict(items)) for use, (key, floor, items) in enumerate(rows, 1)])

    def _use(self, session: int, found: _Session) -> None:
        if session != self._latest:
            self._latest = session
            self._sessions.move_to_end(session)
            self._uses += 1
            found.use = self._uses
        self._changed[session] = None
