"""A thread that reads the state for all who ask: one connection, and questions that wait are answered together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import outcome
import trio

from conveyord.core.errors import Retryable
from conveyord.storage.state.reading import Answer, StateView

T = TypeVar("T")
QUESTIONS_MAX = 10_000  # that wait; each is answered in tens of microseconds
TOGETHER_MAX = 64  # that are answered before those who asked hear of it


class _Question(NamedTuple):
    ask: Callable[[StateView], Any]
    task: trio.lowlevel.Task


class Reader:
    """For the trio thread, but for what the questions do."""

    def __init__(self, directory: Path, generation: Callable[[], int]) -> None:
        """directory: of the state store. generation: its attribute."""
        self._directory = directory
        self._generation = generation
        self._questions: SimpleQueue[_Question | None] = SimpleQueue()
        self._waiting: set[trio.lowlevel.Task] = set()
        self._is_running = False

    async def ask(self, question: Callable[[StateView], Answer[T]]) -> Answer[T]:
        """What the state of this node says. Raises what the question raises, and Retryable if nobody answers."""
        if not self._is_running:
            await trio.lowlevel.checkpoint_if_cancelled()  # who ends with the reader is not to take it for a failure
            raise Retryable("the state of this node cannot be read now; try again")
        if len(self._waiting) >= QUESTIONS_MAX:
            raise Retryable(f"{QUESTIONS_MAX} reads wait here already; try again later")
        task = trio.lowlevel.current_task()
        self._waiting.add(task)
        self._questions.put(_Question(question, task))

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._waiting.discard(task)
            return trio.lowlevel.Abort.SUCCEEDED

        answer: Answer[T] | None = await trio.lowlevel.wait_task_rescheduled(give_up)
        if answer is None:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise Retryable("this node is being stopped; ask another one")
        return answer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled; who waits then is told to try again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_cancelled)
            token = trio.lowlevel.current_trio_token()
            self._is_running = True
            task_status.started()
            await trio.to_thread.run_sync(
                self._loop, token, limiter=trio.CapacityLimiter(1), thread_name="state-reader"
            )
            nursery.cancel_scope.cancel()

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._is_running = False
            self._questions.put(None)
            for task in tuple(self._waiting):
                self._settle(task, outcome.Value(None))

    def _loop(self, token: trio.lowlevel.TrioToken) -> None:
        with closing(StateView(self._directory, generation=self._generation)) as view:
            while questions := self._take():
                answers = [(one.task, outcome.capture(one.ask, view)) for one in questions]
                token.run_sync_soon(partial(self._answer, answers))

    def _take(self) -> list[_Question]:
        """Some that wait, at least one; nothing once it is to stop."""
        first = self._questions.get()
        found = [] if first is None else [first]
        try:
            while found and len(found) < TOGETHER_MAX:
                one = self._questions.get_nowait()
                if one is None:
                    self._questions.put(None)  # for the next time
                    break
                found.append(one)
        except Empty:
            pass
        return found

    def _answer(self, answers: Sequence[tuple[trio.lowlevel.Task, outcome.Outcome[Any]]]) -> None:
        for task, answer in answers:
            self._settle(task, answer)

    def _settle(self, task: trio.lowlevel.Task, answer: outcome.Outcome[Any]) -> None:
        if task in self._waiting:
            self._waiting.discard(task)
            trio.lowlevel.reschedule(task, answer)
