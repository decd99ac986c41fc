"""The trio side of `conveyord run`: signals, the display, metrics, and the engine, in one nursery."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from conveyord.cli.display import Display
from conveyord.cli.exits import expected_cause
from conveyord.config import Address
from conveyord.core.errors import ConfigError
from conveyord.engine.local_run import RunRequest, progress_of, run_pipelines
from conveyord.engine.registry import installed
from conveyord.engine.summary import RunProgress, RunStatus, RunSummary, total
from conveyord.runtime.signals import Meaning, under_signals

log = structlog.get_logger(__name__)

SIGNALS = Meaning(
    "draining: committing what was read; again to stop at once",
    "stopping at once: the next run goes on from the last commit",
)
"""To runs and replays. Every crash point is safe, so there is never a reason to make a user wait."""


async def supervised_run(
    request: RunRequest, display: Display, metrics: Address | None = None
) -> tuple[tuple[RunSummary, ...], int | None]:
    """Run pipelines under signals and a display. Returns their summaries and the last signal, if any.

    metrics: where to serve them from before the first record until the run has ended. Raises ConfigError if that
    cannot be.

    A ConveyordError that the engine raises becomes the summary of failed runs; anything else passes through.
    """
    progress = progress_of(request, installed())
    figures = tuple(progress.values())
    async with _metrics(metrics, figures):
        return await supervised(partial(run_pipelines, request, installed(), progress=progress), figures, display)


@asynccontextmanager
async def _metrics(address: Address | None, progress: Sequence[RunProgress]) -> AsyncIterator[None]:
    """Serve `progress` as metrics meanwhile, if there is an address. What is under way at the end gets no answer."""
    if address is None:
        yield
        return
    from conveyord.engine.metrics import run_registry  # prometheus-client, which most runs do without
    from conveyord.runtime.metrics import PATH, serve_metrics

    listeners = await _listening(address)
    host, port = listeners[0].socket.getsockname()[:2]
    log.info("serving metrics", address=f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_metrics, run_registry(progress), listeners)
        yield
        nursery.cancel_scope.cancel()


async def _listening(address: Address) -> list[trio.SocketListener]:
    from conveyord.runtime.http_server import listen

    try:
        return await listen(*address)
    except OSError as error:
        reason = error.strerror or str(error)
        in_use = error.errno == errno.EADDRINUSE
        remedy = "take another port, 0 for any that is free" if in_use else "check host and port"
        raise ConfigError(
            f"metrics cannot be served at {address.host}:{address.port}: {reason}; {remedy} (--metrics-port, or "
            "metrics under [run] in conveyord.toml)"
        ) from error


async def supervised(
    work: Callable[..., Awaitable[tuple[RunSummary, ...]]], progress: tuple[RunProgress, ...], display: Display
) -> tuple[tuple[RunSummary, ...], int | None]:
    """`work`, which takes `drain`, under signals and a display, as `supervised_run` says."""
    started = trio.current_time()
    outcome: tuple[RunSummary, ...] | None = None

    def cut_short(status: RunStatus, error: BaseException | None = None) -> tuple[RunSummary, ...]:
        seconds = trio.current_time() - started
        expected = None if error is None else expected_cause(error)
        return tuple(RunSummary.of(one, status=status, seconds=seconds, error=expected) for one in progress)

    async def displayed(drain: trio.Event) -> None:
        nonlocal outcome
        async with trio.open_nursery() as nursery:
            nursery.start_soon(display.follow, lambda: total(progress))
            try:
                outcome = await work(drain=drain)
            except Exception as error:  # sorted into expected and bug; a bug is raised again
                if expected_cause(error) is None:
                    raise
                outcome = cut_short("failed", error)
            nursery.cancel_scope.cancel()

    signalled = await under_signals(displayed, SIGNALS)
    return (cut_short("cancelled") if outcome is None else outcome), signalled.number
