"""The trio side of `conveyord run`: signals, the display, and the engine, in one nursery."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from conveyord.cli.display import Display
from conveyord.cli.exits import expected_cause
from conveyord.engine.local_run import RunRequest, progress_of, run_pipelines
from conveyord.engine.registry import installed
from conveyord.engine.summary import RunProgress, RunStatus, RunSummary, total

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Stop:
    """The last signal that arrived."""

    signal_number: int | None = None


async def supervised_run(request: RunRequest, display: Display) -> tuple[tuple[RunSummary, ...], int | None]:
    """Run pipelines under signals and a display. Returns their summaries and the last signal, if any.

    The first SIGINT or SIGTERM drains, the second cancels, the third leaves the process at once: every
    crash point is safe, so there is never a reason to make a user wait. A ConveyordError that the engine
    raises becomes the summary of failed runs; anything else passes through.
    """
    progress = progress_of(request, installed())
    return await supervised(
        partial(run_pipelines, request, installed(), progress=progress), tuple(progress.values()), display
    )


async def supervised(
    work: Callable[..., Awaitable[tuple[RunSummary, ...]]], progress: tuple[RunProgress, ...], display: Display
) -> tuple[tuple[RunSummary, ...], int | None]:
    """`work`, which takes `drain`, under signals and a display, as `supervised_run` says."""
    drain, stop = trio.Event(), _Stop()
    started = trio.current_time()
    outcome: tuple[RunSummary, ...] | None = None

    def cut_short(status: RunStatus, error: BaseException | None = None) -> tuple[RunSummary, ...]:
        seconds = trio.current_time() - started
        expected = None if error is None else expected_cause(error)
        return tuple(RunSummary.of(one, status=status, seconds=seconds, error=expected) for one in progress)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, drain, nursery.cancel_scope, stop)
            nursery.start_soon(display.follow, lambda: total(progress))
            try:
                outcome = await work(drain=drain)
            except Exception as error:  # sorted into expected and bug; a bug is raised again
                if expected_cause(error) is None:
                    raise
                outcome = cut_short("failed", error)
            nursery.cancel_scope.cancel()
    return (cut_short("cancelled") if outcome is None else outcome), stop.signal_number


async def _obey(signals: AsyncIterator[int], drain: trio.Event, everything: trio.CancelScope, stop: _Stop) -> None:
    """Turn signals into what the user means by them, until cancelled."""
    async for number in signals:
        stop.signal_number = number
        name = signal.Signals(number).name
        if not drain.is_set():
            log.info("draining: committing what was read; again to stop at once", signal=name)
            drain.set()
        elif not everything.cancel_called:
            log.warning("stopping at once: the next run goes on from the last commit", signal=name)
            everything.cancel()
        else:
            os._exit(128 + number)
