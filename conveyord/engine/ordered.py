"""Work done in parallel, results taken in order."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import trio

from conveyord.runtime.nurseries import unwrapped

T = TypeVar("T")
R = TypeVar("R")


class _Slot:
    """The place in the order for a result that is not there yet."""

    __slots__ = ("done", "result")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.result: object = None


@asynccontextmanager
async def ordered_map(
    items: AsyncGenerator[T, None], work: Callable[[T], Awaitable[R]], *, width: int
) -> AsyncIterator[AsyncIterator[tuple[T, R]]]:
    """Apply `work` to up to `width` items at a time and yield `(item, result)` in the order of `items`.

    Back-pressure holds: an item is drawn only while fewer than `width` results are unread. An error in
    `items` or `work` surfaces where the results are read, after the results before it, so a consumer
    has handled everything that precedes a failure. Leaving the block cancels what is under way.
    """
    slots_in, slots_out = trio.open_memory_channel[tuple[T, _Slot] | BaseException](width)
    free = trio.Semaphore(width)

    async def compute(item: T, slot: _Slot) -> None:
        try:
            slot.result = await work(item)
        except Exception as error:  # noqa: BLE001 - carried to the consumer, who raises it in order
            slot.result = _Failure(error)
        slot.done.set()

    async def draw() -> None:
        async with slots_in, aclosing(items):
            try:
                await free.acquire()
                async for item in items:
                    slot = _Slot()
                    nursery.start_soon(compute, item, slot)
                    await slots_in.send((item, slot))
                    await free.acquire()
            except Exception as error:  # noqa: BLE001 - the same: it has its place in the order
                await slots_in.send(error)

    async def results() -> AsyncGenerator[tuple[T, R], None]:
        async for entry in slots_out:
            if isinstance(entry, BaseException):
                raise entry
            item, slot = entry
            await slot.done.wait()
            if isinstance(slot.result, _Failure):
                raise slot.result.error
            yield item, slot.result  # type: ignore[misc]
            free.release()

    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(draw)
            async with aclosing(results()) as in_order:
                yield in_order
            nursery.cancel_scope.cancel()


class _Failure:
    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error
