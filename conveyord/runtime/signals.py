"""What signals mean to a process: the first one drains, the second cancels, the third leaves at once."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from conveyord.runtime.nurseries import unwrapped

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What is logged. draining: at the first SIGINT or SIGTERM. cancelling: at the second.

    reload: what SIGHUP does; None for what it does to any process: it ends.
    """

    draining: str
    cancelling: str
    reload: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Signalled:
    """Which signal came last, if any, and whether it cancelled."""

    number: int | None = None
    is_cancelled: bool = False


async def under_signals(work: Callable[[trio.Event], Awaitable[None]], meaning: Meaning) -> Signalled:
    """Run `work`, which takes the event that is set when it is to drain; returns what was signalled.

    Raises what `work` raises.
    """
    drain, everything, numbers = trio.Event(), trio.CancelScope(), list[int]()
    heard = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if meaning.reload else [])]
    with trio.open_signal_receiver(*heard) as signals, unwrapped():
        async with trio.open_nursery() as listening:
            # Outside of what the second signal cancels: a thread that is in a call cannot be cancelled, and somebody
            # has to hear the third while it is waited for.
            listening.start_soon(_obey, signals, drain, everything, numbers, meaning)
            with everything:
                await work(drain)
            listening.cancel_scope.cancel()
    return Signalled(numbers[-1] if numbers else None, everything.cancelled_caught)


async def _obey(
    signals: AsyncIterator[int], drain: trio.Event, everything: trio.CancelScope, numbers: list[int], meaning: Meaning
) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            assert meaning.reload is not None
            meaning.reload()
            continue
        numbers.append(number)
        name = signal.Signals(number).name
        if not drain.is_set():
            log.info(meaning.draining, signal=name)
            drain.set()
        elif not everything.cancel_called:
            log.warning(meaning.cancelling, signal=name)
            everything.cancel()
        else:
            os._exit(128 + number)
