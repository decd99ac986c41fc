"""The receiving end of a stream: what has come and was not taken yet, bounded by the credit that was given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Self

import trio

from conveyord.core.wire.heads import FrameRefused
from conveyord.runtime.rpc.handlers import Answer
from conveyord.runtime.rpc.outbox import Ticket
from conveyord.runtime.rpc.outcomes import DeadlineOver


def item_bytes(payload_bytes: int, body_bytes: int) -> int:
    """What an item costs of the credit in bytes. Both sides must count alike."""
    return payload_bytes + body_bytes


class Stream:
    """Items in order, for one task: `async for answer in stream`. More credit is given as they are taken.

    Raises what ended the stream early: RemoteError, DeadlineOver, OutcomeUnknown or Retryable.
    """

    def __init__(self, method: str, items: int, size: int, deadline: float, grant: Callable[[int, int], None]) -> None:
        self.ticket: Ticket | None = None
        self._method = method
        self._window = (items, size)
        self._granted = (items, size)
        self._received = (0, 0)
        self._taken = (0, 0)
        self._deadline = deadline
        self._grant = grant
        self._items: deque[Answer] = deque()
        self._is_ended = False
        self._error: Exception | None = None
        self._news = trio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        if not self._items and not self._is_ended:
            with trio.move_on_at(self._deadline) as scope:
                while not self._items and not self._is_ended:
                    self._news = trio.Event()
                    await self._news.wait()
            if scope.cancelled_caught:
                raise DeadlineOver(f"the items of {self._method} did not come to their end within the deadline")
        else:
            await trio.lowlevel.checkpoint()
        if self._items:
            return self._take()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def _take(self) -> Answer:
        answer = self._items.popleft()
        items, size = self._taken
        self._taken = items, size = items + 1, size + item_bytes(len(answer.payload), len(answer.body))
        # A credit for each item would double the frames; at half the window the sender does not wait yet.
        if not self._is_ended and (
            self._granted[0] - items <= self._window[0] // 2 or self._granted[1] - size <= self._window[1] // 2
        ):
            self._granted = items + self._window[0], size + self._window[1]
            self._grant(*self._granted)
        return answer

    def put(self, answer: Answer) -> None:
        """Take an item that came. Raises FrameRefused if it was sent without credit."""
        items, size = self._received
        if items >= self._granted[0] or size >= self._granted[1]:
            raise FrameRefused("beyond_credit", f"an item of {self._method} was sent without credit for it")
        self._received = items + 1, size + item_bytes(len(answer.payload), len(answer.body))
        self._items.append(answer)
        self._news.set()

    def end(self, error: Exception | None) -> None:
        """No more will come. What has come can still be taken."""
        self._is_ended, self._error = True, error
        self._news.set()
