"""The trio side of `conveyord run`: signals, the display, and the engine, in one nursery."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
import trio

from conveyord.cli.display import Display
from conveyord.cli.exits import expected_cause
from conveyord.engine.contracts import Delivery, Sink
from conveyord.engine.local_run import RunRequest, run_pipeline
from conveyord.engine.registry import installed
from conveyord.engine.summary import RunProgress, RunStatus, RunSummary

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Stop:
    """The last signal that arrived."""

    signal_number: int | None = None


async def supervised_run(request: RunRequest, display: Display) -> tuple[RunSummary, int | None]:
    """Run a pipeline under signals and a display. Returns its summary and the last signal, if any.

    The first SIGINT or SIGTERM drains, the second cancels, the third leaves the process at once: every
    crash point is safe, so there is never a reason to make a user wait. A ConveyordError that the engine
    raises becomes the summary of a failed run; anything else passes through.
    """
    progress, drain, stop = RunProgress(), trio.Event(), _Stop()
    started = trio.current_time()
    outcome: RunSummary | None = None

    def cut_short(status: RunStatus, error: BaseException | None = None) -> RunSummary:
        return RunSummary.cut_short(
            progress,
            pipeline=request.pipeline.identity,
            status=status,
            seconds=trio.current_time() - started,
            delivery=_delivery(request),
            error=None if error is None else expected_cause(error),
        )

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, drain, nursery.cancel_scope, stop)
            nursery.start_soon(display.follow, progress)
            try:
                outcome = await run_pipeline(request, installed(), drain=drain, progress=progress)
            except Exception as error:  # sorted into expected and bug; a bug is raised again
                if expected_cause(error) is None:
                    raise
                outcome = cut_short("failed", error)
            nursery.cancel_scope.cancel()
    summary = cut_short("cancelled") if outcome is None else outcome
    return summary, stop.signal_number


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


def _delivery(request: RunRequest) -> Delivery:
    operator = installed().operator("sink", request.pipeline.sink.type)
    assert issubclass(operator, Sink)
    return operator.delivery
