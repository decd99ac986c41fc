"""`ordered_map`: parallel work, ordered results, back-pressure, and errors in their place."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio
from trio.testing import MockClock

from conveyord.engine.ordered import ordered_map


async def numbers(count: int, drawn: list[int] | None = None, fails_at: int | None = None) -> AsyncGenerator[int, None]:
    for number in range(count):
        if number == fails_at:
            raise ValueError("source broke")
        if drawn is not None:
            drawn.append(number)
        yield number


async def test_results_come_in_order_though_later_work_is_faster(autojump_clock: MockClock) -> None:
    async def work(number: int) -> int:
        await trio.sleep(10 - number)
        return number * number

    async with ordered_map(numbers(10), work, width=4) as results:
        assert [pair async for pair in results] == [(n, n * n) for n in range(10)]


async def test_width_items_are_worked_on_at_once(autojump_clock: MockClock) -> None:
    started = trio.current_time()

    async def work(number: int) -> None:
        await trio.sleep(1)

    async with ordered_map(numbers(12), work, width=3) as results:
        assert len([pair async for pair in results]) == 12
    assert trio.current_time() - started == pytest.approx(4)


async def test_a_slow_reader_holds_the_source_back(autojump_clock: MockClock) -> None:
    drawn: list[int] = []

    async def work(number: int) -> int:
        return number

    async with ordered_map(numbers(100, drawn), work, width=3) as results:
        await anext(aiter(results))
        await trio.testing.wait_all_tasks_blocked()
        assert len(drawn) <= 4


@pytest.mark.parametrize("broken", ["source", "work"])
async def test_an_error_surfaces_after_everything_before_it(autojump_clock: MockClock, broken: str) -> None:
    async def work(number: int) -> int:
        await trio.sleep(5 - number)
        if broken == "work" and number == 3:
            raise ValueError("work broke")
        return number

    seen = []
    with pytest.raises(ValueError, match=f"{broken} broke"):
        async with ordered_map(numbers(6, fails_at=3 if broken == "source" else None), work, width=4) as results:
            async for number, _ in results:
                seen.append(number)
    assert seen == [0, 1, 2]


async def test_leaving_early_cancels_what_is_under_way(autojump_clock: MockClock) -> None:
    cancelled: list[int] = []

    async def work(number: int) -> int:
        try:
            await trio.sleep(number * 1000)
        except trio.Cancelled:
            cancelled.append(number)
            raise
        return number

    async with ordered_map(numbers(5), work, width=3) as results:
        await anext(aiter(results))
    assert cancelled
