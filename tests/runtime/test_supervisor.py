"""Services that start, fail, drain and do not drain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from conveyord.core.errors import ConfigError, ConveyordError
from conveyord.runtime.supervisor import ServiceEnded, supervise

DRAIN_SECONDS = 10.0


@dataclass
class Serving:
    """fails_at: after so many seconds, of them `before` the start. takes_seconds: to drain."""

    name: str
    told: list[str] = field(default_factory=list)
    fails_before: bool = False
    ends_after: float | None = None
    error: Exception | None = None
    takes_seconds: float = 1.0

    async def run(self, *, drain: trio.Event, task_status: trio.TaskStatus[Any]) -> None:
        if self.fails_before:
            raise ConfigError(f"{self.name} cannot listen there")
        task_status.started()
        self.told.append(f"{self.name} starts")
        try:
            with trio.move_on_after(self.ends_after if self.ends_after is not None else float("inf")):
                await drain.wait()
            if self.error is not None:
                raise self.error
            if drain.is_set():
                self.told.append(f"{self.name} drains")
                await trio.sleep(self.takes_seconds)
        finally:
            self.told.append(f"{self.name} ends")


async def supervised(*services: Serving, stop_after: float = 5.0) -> bool:
    told = list[str]()
    for service in services:
        service.told = told
    stop = trio.Event()

    async def stopping() -> None:
        await trio.sleep(stop_after)
        stop.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stopping)
        try:
            has_drained = await supervise(services, stop=stop, drain_seconds=DRAIN_SECONDS)
        finally:
            nursery.cancel_scope.cancel()
    return has_drained


async def test_services_start_in_order_and_drain_one_after_the_other_in_reverse(autojump_clock: MockClock) -> None:
    a, b = Serving("a"), Serving("b")
    assert await supervised(a, b)
    assert a.told == ["a starts", "b starts", "b drains", "b ends", "a drains", "a ends"]
    assert trio.current_time() >= 7.0


async def test_who_does_not_drain_in_time_is_cancelled_and_so_is_what_it_needs(autojump_clock: MockClock) -> None:
    a, b = Serving("a"), Serving("b", takes_seconds=1000.0)
    assert not await supervised(a, b)
    assert sorted(a.told[-2:]) == ["a ends", "b ends"]
    assert "a drains" not in a.told


async def test_one_that_cannot_start_says_why_and_the_others_end(autojump_clock: MockClock) -> None:
    a, b = Serving("a"), Serving("b", fails_before=True)
    with pytest.raises(BaseException) as found:
        await supervised(a, b)
    assert _only(found.value) == "b cannot listen there"
    assert a.told == ["a starts", "a ends"]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (None, ServiceEnded, "b ended by itself"),
        (ConfigError("b has lost its disk"), ConfigError, "b has lost its disk"),
        (ValueError("a bug"), ValueError, "a bug"),
    ],
)
async def test_one_that_ends_by_itself_ends_all(
    autojump_clock: MockClock, error: Exception | None, kind: type[Exception], says: str
) -> None:
    a, b = Serving("a"), Serving("b", ends_after=2.0, error=error)
    with pytest.raises(BaseException) as found:
        await supervised(a, b)
    assert says in _only(found.value, kind)
    assert a.told[-1] == "a ends"
    assert trio.current_time() < 5.0


def _only(error: BaseException, kind: type[BaseException] = ConveyordError) -> str:
    """The text of the one error in a group: the nursery of the test is round it."""
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, kind)
    return str(error)
