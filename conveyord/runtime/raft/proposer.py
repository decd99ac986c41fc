"""Proposes commands of this node until they are committed, each applied once, whoever leads meanwhile.

The node has one session in the replicated state, and every command a number in it. So whatever is not known to have
happened is proposed again under the same number, to whoever leads then: it takes effect once, and its first reply comes
back (`core/raft/sessions.py`). Commands that came in at the same time may be applied in any order.

The state keeps `WINDOW` replies of a session, from the lowest number on that is waited for. So no number is given out
that is `WINDOW` above that one: who comes then waits for the lowest, and gets the next number in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import trio

from conveyord.core.errors import OutcomeUnknown, Refused, Retryable
from conveyord.core.raft.sessions import WINDOW
from conveyord.core.raft.types import NodeId
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.outcomes import Done, Outcome, Unknown

CommandT = TypeVar("CommandT")
OfSessionT_contra = TypeVar("OfSessionT_contra", contravariant=True)

AGAIN_SECONDS = 0.05  # before the same is tried again, where nothing else tells when that makes sense


class Forward(Protocol):
    """Proposes at another node."""

    async def __call__(self, leader: NodeId, data: bytes) -> Outcome:
        """What becomes of a command there. Raises Retryable if it never left, OutcomeUnknown if no answer came, Refused
        if it is not taken there, and was not.
        """


class Session(Protocol[OfSessionT_contra]):
    """How commands of a session are written."""

    def register(self) -> bytes:
        """The command that opens a session: its index is the session."""

    def command(self, session: int, number: int, ack_below: int, command: OfSessionT_contra) -> bytes:
        """A command with its number; ack_below: the lowest number whose reply is still waited for."""

    def about(self, command: OfSessionT_contra) -> str | None:
        """The object that it is about, if others may share its entry: see `core/raft/bundles.py`."""

    def is_expired(self, reply: bytes) -> bool:
        """Whether a reply says that the session is not known any more."""


class Proposer(Generic[CommandT]):
    """For the trio thread."""

    def __init__(self, driver: Driver, forward: Forward, session: Session[CommandT]) -> None:
        self._driver = driver
        self._forward = forward
        self._session = session
        self._id = 0
        self._last = 0  # the highest number that was given out
        self._open = set[int]()
        self._floor = 1  # the lowest number that is open; the next one, if none is
        self._full = trio.lowlevel.ParkingLot()  # of those who wait for room in the window
        self._given: dict[trio.lowlevel.Task, int] = {}  # their numbers, until they run again
        self._opening = trio.Lock()
        self._forwarding: dict[trio.CancelScope, NodeId] = {}
        driver.on_new_leader.append(self._give_up_others)

    async def propose(self, command: CommandT, *, seconds: float) -> Done:
        """Have a command committed, and return where and with what reply; in so many seconds at most.

        Raises Retryable if that was too short and the command is in no log, Refused if the leader does not take it;
        OutcomeUnknown if it may be there, or if the session expired in between.
        """
        attempt = _Attempt(trio.current_time() + seconds)
        try:
            if self._last - self._floor < WINDOW - 1:
                number = self._next()
            else:
                with attempt.limited():
                    await self._full.park()
                number = self._given.pop(trio.lowlevel.current_task())
            return await self._numbered(number, command, attempt)
        except _TooLate:
            raise attempt.too_late(seconds, self._driver.standing.leader) from None

    async def _numbered(self, number: int, command: CommandT, attempt: _Attempt) -> Done:
        try:
            # A lock that is passed on takes a round of the event loop, so it is only taken where there is no session.
            session = self._id or await self._opened(attempt)
            data = self._session.command(session, number, self._floor, command)
            done = await self._until_done(data, self._session.about(command), attempt)
        finally:
            self._close(number)
        if self._session.is_expired(done.reply):
            if self._id == session:
                self._id = 0
            if attempt.may_be_there:
                raise OutcomeUnknown("the session of this node expired before an answer came; look, then repeat")
            raise Retryable("the session of this node expired; try again")
        return done

    def _next(self) -> int:
        """Give out a number, for which there is room: it is open from now on."""
        self._last += 1
        self._open.add(self._last)
        return self._last

    def _close(self, number: int) -> None:
        """Nobody waits for its reply any more."""
        self._open.remove(number)
        if number != self._floor:
            return
        while self._floor <= self._last and self._floor not in self._open:
            self._floor += 1
        if self._full:
            # They get their numbers here: by the time they run, who came later could have taken the room.
            for task in self._full.unpark(count=self._floor + WINDOW - 1 - self._last):
                self._given[task] = self._next()

    async def _opened(self, attempt: _Attempt) -> int:
        with attempt.limited():
            await self._opening.acquire()
        try:
            if not self._id:
                self._id = (await self._until_done(self._session.register(), None, _Attempt(attempt.deadline))).index
            return self._id
        finally:
            self._opening.release()

    async def _until_done(self, data: bytes, about: str | None, attempt: _Attempt) -> Done:
        """Propose the same bytes until they are committed."""
        driver = self._driver
        while True:
            known = driver.standing.leader
            outcome: Outcome | None
            if known == driver.node_id:
                outcome = await self._proposed_here(data, about, attempt)
                if isinstance(outcome, Done):
                    return outcome
            with attempt.limited():
                if known is None:
                    await driver.until(lambda now: now.leader is not None)
                    continue
                if known != driver.node_id:
                    outcome = await self._proposed_there(known, data, attempt)
                    if isinstance(outcome, Done):
                        return outcome
                with trio.move_on_after(AGAIN_SECONDS):
                    await driver.until(lambda now, known=known: now.leader not in (None, known))  # type: ignore[misc]

    async def _proposed_there(self, leader: NodeId, data: bytes, attempt: _Attempt) -> Outcome | None:
        """The outcome of one attempt at another node; None if it is in no log there."""
        before, attempt.may_be_there = attempt.may_be_there, True  # if this is cancelled
        scope = trio.CancelScope()
        self._forwarding[scope] = leader
        try:
            with scope:
                outcome = await self._forward(leader, data)
            if scope.cancelled_caught:
                return Unknown("another node leads now")
        except OutcomeUnknown as error:
            return Unknown(str(error))
        except Retryable:
            attempt.may_be_there = before
            return None
        except Refused as error:
            if before:
                raise OutcomeUnknown(f"{error}; an earlier attempt may be applied: look, then repeat") from error
            raise
        finally:
            del self._forwarding[scope]
        attempt.may_be_there = before or isinstance(outcome, Unknown)
        return outcome

    def _give_up_others(self, leader: NodeId) -> None:
        """Nobody waits for what a former leader says: it may hang, and the command is safe to propose again."""
        for scope, asked in self._forwarding.items():
            if asked != leader:
                scope.cancel()

    async def _proposed_here(self, data: bytes, about: str | None, attempt: _Attempt) -> Outcome:
        """The outcome of one attempt at this node."""
        before, attempt.may_be_there = attempt.may_be_there, True
        waiting = _Waiting(self._driver)
        outcome = await waiting.outcome(data, about, attempt.deadline)
        attempt.may_be_there = before or isinstance(outcome, Unknown)
        return outcome


class _TooLate(Exception):
    """The time of a proposal is over."""


class _Waiting:
    """One proposal at this node, that is waited for until it is answered or its time is over.

    Without an event or a scope of its own: for hundreds at a time those cost more than all else that is done for them.
    """

    __slots__ = ("_driver", "_found", "_number", "_task", "is_open")

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._found: Outcome | None = None
        self._number = 0
        self._task: trio.lowlevel.Task | None = None
        self.is_open = True
        """Whether its deadline matters still, see `Deadlines`."""

    async def outcome(self, data: bytes, about: str | None, deadline: float) -> Outcome:
        """Propose, and wait. Raises _TooLate."""
        self._number = self._driver.propose(data, self._answer, about=about)
        if self._found is None:  # as nearly always
            self._task = trio.lowlevel.current_task()
            self._driver.deadlines.add(deadline, self)
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        if self._found is None:
            raise _TooLate
        return self._found

    def expire(self) -> None:
        """The deadline has come."""
        self._close()
        assert self._task is not None
        trio.lowlevel.reschedule(self._task)

    def _answer(self, outcome: Outcome) -> None:
        self._found, self.is_open = outcome, False
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._close()
        return trio.lowlevel.Abort.SUCCEEDED

    def _close(self) -> None:
        self.is_open = False
        self._driver.forget(self._number)


class _Attempt:
    """deadline: in trio's time. may_be_there: the command may be in some log, for all we know."""

    __slots__ = ("deadline", "may_be_there")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.may_be_there = False

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raises _TooLate if the block is not done before the deadline."""
        with trio.move_on_at(self.deadline) as scope:
            yield
        if scope.cancelled_caught:
            raise _TooLate

    def too_late(self, seconds: float, leader: NodeId | None) -> Retryable | OutcomeUnknown:
        """What it comes to that no answer came in time."""
        who = "no leader is known" if leader is None else f"node {leader} leads"
        if self.may_be_there:
            return OutcomeUnknown(f"no answer within {seconds:g} s ({who}); it may be applied: look, then repeat")
        return Retryable(f"not proposed within {seconds:g} s ({who}); try again")
