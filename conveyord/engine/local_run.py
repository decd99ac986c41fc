"""One pipeline run in this process, from its definition to its summary: what `conveyord run` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog
import trio

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Positions
from conveyord.core.pipeline.manifest import PipelineSpec, StageSpec
from conveyord.engine.contracts import Operator, OperatorContext, Sink, Source, Transform
from conveyord.engine.failures import Failures
from conveyord.engine.graph import LinearGraph, run_linear
from conveyord.engine.outlet import TrackedOutlet
from conveyord.engine.registry import Kind, Registry, stage_config
from conveyord.engine.summary import RunProgress, RunStatus, RunSummary, SinkProgress
from conveyord.storage.locks import owned

log = structlog.get_logger(__name__)

PROGRESS_SECONDS = 0.2  # how often the display's figures are brought up to date


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to run, and where it keeps what it keeps."""

    pipeline: PipelineSpec
    data_dir: Path
    channel_capacity: int
    threads: int
    skip_bad: bool
    adopt_from: str | None
    catalogs: dict[str, dict[str, str]]


async def run_pipeline(
    request: RunRequest, registry: Registry, *, drain: trio.Event, progress: RunProgress
) -> RunSummary:
    """Run a pipeline to its end, or until `drain` is set and what was read is committed.

    Expected failures are in the summary's `error`; a failure to start (the data directory is in use, a
    setting cannot work) and a bug are raised. If the caller cancels, nothing further is committed and
    the next run goes on from the last commit.
    """
    started = trio.current_time()
    with owned(request.data_dir):
        graph = _build(request, registry)
        fence = await graph.sink.open()
        _check_sources(request, graph.source, fence)
        if fence:
            log.info("going on from the last commit", partitions=len(fence))
        progress.stage = "reading"
        outlet = TrackedOutlet(progress)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_current, progress, graph.sink, outlet)
            failures = await run_linear(
                graph,
                fences=(fence,),
                outlet=outlet.over,
                channel_capacity=request.channel_capacity,
                drain=drain,
            )
            nursery.cancel_scope.cancel()
        _update(progress, graph.sink, outlet)
    for stage, error in failures.by_stage[1:]:
        log.error("another stage failed too", stage=stage, code=error.code, reason=str(error))
    first = failures.first
    return RunSummary.cut_short(
        progress,
        pipeline=request.pipeline.identity,
        status=_status(failures, drain),
        seconds=trio.current_time() - started,
        delivery=graph.sink.delivery,
        error=None if first is None else first[1],
        stage=None if first is None else first[0],
    )


def _build(request: RunRequest, registry: Registry) -> LinearGraph:
    """The operators of the pipeline, constructed but not opened."""
    threads = trio.CapacityLimiter(request.threads)
    sink_options = request.pipeline.sink.options

    def make(kind: Kind, stage: StageSpec) -> Operator:
        operator = registry.operator(kind, stage.type)
        context = OperatorContext(
            pipeline=request.pipeline.identity,
            stage=stage.name,
            data_dir=request.data_dir,
            threads=threads,
            skip_bad=request.skip_bad,
            catalogs=request.catalogs,
            provenance=sink_options.get("provenance") is True,
            adopt_from=request.adopt_from,
        )
        return operator(stage_config(operator, stage.options, stage=stage.name), context)

    spec = request.pipeline
    return LinearGraph(
        source=cast(Source, make("source", spec.source)),
        transforms=tuple(cast(Transform, make("transform", step)) for step in spec.steps),
        sink=cast(Sink, make("sink", spec.sink)),
    )


def _check_sources(request: RunRequest, source: Source, fence: Positions) -> None:
    """Refuse a fence that names a source this pipeline does not have: its records would be read again."""
    unknown = min({partition.source for partition in fence} - {source.context.stage}, default=None)
    if unknown is not None:
        raise Refused(
            f"pipeline {request.pipeline.identity}: the sink holds positions of the source "
            f"{unknown!r}, but the pipeline's source is {source.context.stage!r}; "
            "give the source its former name, or rename the pipeline to start anew"
        )


async def _keep_current(progress: RunProgress, sink: Sink, outlet: TrackedOutlet) -> None:
    while True:
        _update(progress, sink, outlet)
        await trio.sleep(PROGRESS_SECONDS)


def _update(progress: RunProgress, sink: Sink, outlet: TrackedOutlet) -> None:
    report = sink.report()
    progress.rows_out = sink.taken.rows
    progress.filtered = sink.taken.filtered
    progress.oldest_uncommitted_seconds = outlet.oldest_age_seconds(trio.current_time())
    progress.sinks[report.name] = SinkProgress(rows=report.rows, files=report.files, commits=report.commits)


def _status(failures: Failures, drain: trio.Event) -> RunStatus:
    if failures.first is not None:
        return "failed"
    return "drained" if drain.is_set() else "succeeded"
