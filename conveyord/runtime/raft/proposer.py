"""Proposes commands of this node until they are applied, each once, whoever leads meanwhile.

The node has one session in the replicated state, and every command a number in it. So whatever is not known to have
happened is proposed again under the same number, to whoever leads then: it takes effect once, and its first reply comes
back (`core/raft/sessions.py`). Commands that came in at the same time may be applied in any order.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import trio

from conveyord.core.errors import OutcomeUnknown, Refused, Retryable
from conveyord.core.raft.messages import NotLeader
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

    def is_expired(self, reply: bytes) -> bool:
        """Whether a reply says that the session is not known any more."""


class Proposer(Generic[CommandT]):
    """For the trio thread."""

    def __init__(self, driver: Driver, forward: Forward, session: Session[CommandT]) -> None:
        self._driver = driver
        self._forward = forward
        self._session = session
        self._id = 0
        self._number = 0
        self._open: dict[int, None] = {}  # in the order of their numbers
        self._window = trio.CapacityLimiter(WINDOW)
        self._opening = trio.Lock()
        self._forwarding: dict[trio.CancelScope, NodeId] = {}
        driver.on_new_leader.append(self._give_up_others)

    async def propose(self, command: CommandT, *, seconds: float) -> Done:
        """Have a command applied, and return where and with what reply; in so many seconds at most.

        Raises Retryable if that was too short and the command is in no log, Refused if the leader does not take it;
        OutcomeUnknown if it may be there, or if the session expired in between.
        """
        attempt = _Attempt()
        with trio.move_on_after(seconds):
            async with self._window:
                return await self._numbered(command, attempt)
        raise attempt.too_late(seconds, self._driver.standing.leader)

    async def _numbered(self, command: CommandT, attempt: _Attempt) -> Done:
        session = await self._opened()
        self._number += 1
        number = self._number
        self._open[number] = None
        try:
            data = self._session.command(session, number, next(iter(self._open)), command)
            done = await self._until_done(data, attempt)
        finally:
            del self._open[number]
        if self._session.is_expired(done.reply):
            if self._id == session:
                self._id = 0
            if attempt.may_be_there:
                raise OutcomeUnknown("the session of this node expired before an answer came; look, then repeat")
            raise Retryable("the session of this node expired; try again")
        return done

    async def _opened(self) -> int:
        if self._id:
            return self._id  # a lock that is passed on takes a round of the event loop
        async with self._opening:
            if not self._id:
                self._id = (await self._until_done(self._session.register(), _Attempt())).index
            return self._id

    async def _until_done(self, data: bytes, attempt: _Attempt) -> Done:
        """Propose the same bytes until they are applied."""
        while True:
            standing = self._driver.standing
            if standing.leader is None:
                await self._driver.until(lambda now: now.leader is not None)
                continue
            outcome = await self._proposed(standing.leader, data, attempt)
            if isinstance(outcome, Done):
                return outcome
            if isinstance(outcome, Unknown):
                attempt.may_be_there = True
            known = standing.leader
            with trio.move_on_after(AGAIN_SECONDS):
                await self._driver.until(lambda now, known=known: now.leader not in (None, known))  # type: ignore[misc]

    async def _proposed(self, leader: NodeId, data: bytes, attempt: _Attempt) -> Outcome:
        """The outcome of one attempt."""
        if leader == self._driver.node_id:
            return await self._proposed_here(data, attempt)
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
        except Retryable as error:
            outcome = NotLeader(0, str(error), None)
        except Refused as error:
            if before:
                raise OutcomeUnknown(f"{error}; an earlier attempt may be applied: look, then repeat") from error
            raise
        finally:
            del self._forwarding[scope]
        attempt.may_be_there = before
        return outcome

    def _give_up_others(self, leader: NodeId) -> None:
        """Nobody waits for what a former leader says: it may hang, and the command is safe to propose again."""
        for scope, asked in self._forwarding.items():
            if asked != leader:
                scope.cancel()

    async def _proposed_here(self, data: bytes, attempt: _Attempt) -> Outcome:
        answer = _Answer()
        before, attempt.may_be_there = attempt.may_be_there, True
        number = self._driver.propose(data, answer)
        try:
            await answer.is_there.wait()
        finally:
            self._driver.forget(number)
        assert answer.outcome is not None
        attempt.may_be_there = before or isinstance(answer.outcome, Unknown)
        return answer.outcome


class _Attempt:
    """may_be_there: the command may be in some log, for all we know."""

    may_be_there = False

    def too_late(self, seconds: float, leader: NodeId | None) -> Retryable | OutcomeUnknown:
        """What it comes to that no answer came in time."""
        who = "no leader is known" if leader is None else f"node {leader} leads"
        if self.may_be_there:
            return OutcomeUnknown(f"no answer within {seconds:g} s ({who}); it may be applied: look, then repeat")
        return Retryable(f"not proposed within {seconds:g} s ({who}); try again")


class _Answer:
    """Waits for one outcome."""

    def __init__(self) -> None:
        self.is_there = trio.Event()
        self.outcome: Outcome | None = None

    def __call__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.is_there.set()
