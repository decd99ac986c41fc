"""Pipelines run together in this process, from their definitions to their summaries: what `conveyord run` does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from conveyord.core.errors import ConveyordError
from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine.contracts import Delivery, Sink, Source
from conveyord.engine.failures import Failures
from conveyord.engine.graph import run_graph
from conveyord.engine.plan import RunSettings, assemble
from conveyord.engine.preparation import Limits, Prepared, open_sinks, prepare
from conveyord.engine.registry import Registry, validate_options
from conveyord.engine.summary import RunProgress, RunStatus, RunSummary, SinkProgress
from conveyord.storage.locks import owned

log = structlog.get_logger(__name__)

PROGRESS_SECONDS = 0.2  # how often the display's figures are brought up to date


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to run, and where it keeps what it keeps. `threads` bounds CPU-bound work."""

    pipelines: tuple[Pipeline, ...]
    data_dir: Path
    channel_capacity: int
    threads: int
    limits: Limits
    skip_bad: bool = False
    adopt_from: str | None = None
    catalogs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def settings(self) -> RunSettings:
        """What surrounds the operators. To be called in trio."""
        limiter = trio.CapacityLimiter(self.threads)
        return RunSettings(self.data_dir, limiter, self.skip_bad, self.adopt_from, self.catalogs)


def progress_of(request: RunRequest, registry: Registry) -> dict[str, RunProgress]:
    """An empty progress for every pipeline, by identity, with the weakest promise among its sinks."""
    found = {}
    for pipeline in request.pipelines:
        copies = pipeline.dlq.sink if pipeline.dlq is not None else None
        promises = {
            operator.delivery_of(validate_options(operator, dict(stage.options)))
            for stage in pipeline.of_kind("sink")
            if stage.name != copies and issubclass(operator := registry.operator("sink", stage.type), Sink)
        }
        weakest: Delivery = "at-least-once" if "at-least-once" in promises else "exactly-once"
        found[pipeline.identity] = RunProgress(pipeline=pipeline.identity, delivery=weakest)
    return found


async def run_pipelines(
    request: RunRequest, registry: Registry, *, drain: trio.Event, progress: Mapping[str, RunProgress]
) -> tuple[RunSummary, ...]:
    """Run pipelines to their ends, or until `drain` is set and what was read is committed.

    progress: one for each pipeline, by identity, kept up to date. Expected failures are in the summaries'
    `error`; a failure to start (the data directory is in use, a setting cannot work) and a bug are raised.
    If the caller cancels, nothing further is committed and the next run goes on from the last commit.
    """
    started, settings = trio.current_time(), request.settings()
    async with AsyncExitStack() as stack:
        stack.enter_context(owned(request.data_dir))
        prepared = await prepare(request.pipelines, registry, settings, request.limits, progress, stack)
        for one in progress.values():
            one.stage = "reading"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_current, prepared, progress)
            failures = await run_graph(
                prepared.graph, channel_capacity=request.channel_capacity, threads=settings.threads, drain=drain
            )
            nursery.cancel_scope.cancel()
        _update(prepared, progress)
        if not failures.all:
            await prepared.finish()
    seconds = trio.current_time() - started
    return tuple(_summary(progress[pipeline.identity], failures, drain, seconds) for pipeline in request.pipelines)


async def check_pipelines(request: RunRequest, registry: Registry) -> list[tuple[str, ConveyordError]]:
    """Reach for everything that a run would need, and move nothing. Returns what is wrong, by stage.

    Raises what keeps the run from being put together at all.
    """
    found: list[tuple[str, ConveyordError]] = []
    async with AsyncExitStack() as stack:
        stack.enter_context(owned(request.data_dir))
        assembly = assemble(request.pipelines, registry, request.settings())
        await open_sinks(assembly, stack)
        for operator in assembly.operators.values():
            try:
                await operator.check()
            except ConveyordError as error:
                found.append((operator.context.stage, error))
    return found


def _summary(progress: RunProgress, failures: Failures, drain: trio.Event, seconds: float) -> RunSummary:
    failed = failures.of(progress.pipeline)
    first = failed[0] if failed else None
    for other in failed[1:]:
        stage = other.stage_in(progress.pipeline)
        log.error("another stage failed too", stage=stage, code=other.error.code, reason=str(other.error))
    status: RunStatus = "failed" if first is not None else "drained" if drain.is_set() else "succeeded"
    return RunSummary.of(
        progress,
        status=status,
        seconds=seconds,
        error=None if first is None else first.error,
        stage=None if first is None else first.stage_in(progress.pipeline),
    )


async def _keep_current(prepared: Prepared, progress: Mapping[str, RunProgress]) -> None:
    while True:
        _update(prepared, progress)
        await trio.sleep(PROGRESS_SECONDS)


def _update(prepared: Prepared, progress: Mapping[str, RunProgress]) -> None:
    now = trio.current_time()
    for pipeline, one in progress.items():
        sinks = prepared.sinks_of(pipeline)
        one.rows_out = sum(sink.taken.rows for sink in sinks)
        one.filtered = sum(node.removed.of(pipeline) for node in prepared.nodes_of(pipeline))
        one.dead_letters = prepared.box.counts[pipeline]
        ages = [node.outlet.oldest_age_seconds(now) for node in prepared.nodes_of(pipeline) if node.outlet is not None]
        one.oldest_uncommitted_seconds = max((age for age in ages if age is not None), default=None)
        for sink in sinks:
            report = sink.report()
            counts = report.rows, report.files, report.commits, report.discarded_values
            one.sinks[sink.context.stage] = SinkProgress(*counts)
        one.discarded_values = sum(sink.discarded_values for sink in one.sinks.values())
        for node in prepared.nodes_of(pipeline):
            source, context = node.operator, node.operator.context
            if isinstance(source, Source) and source.health is not None:
                one.sources[context.names.get(pipeline, context.stage)] = source.health
