"""What a run tells while it runs (`RunProgress`) and when it ends (`RunSummary`).

The engine writes the progress, the command line polls it: one trio thread, so no locks. The summary's
JSON shape is part of the interface and only ever grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from conveyord.core.errors import ConveyordError
from conveyord.engine.contracts import Delivery, SinkReport
from conveyord.engine.health import SourceHealth, SourceReport

RunStatus = Literal["succeeded", "drained", "cancelled", "failed"]


@dataclass(slots=True)
class SinkProgress:
    """What one sink has done so far in this run. `rows` are written, not necessarily committed."""

    rows: int = 0
    files: int = 0
    commits: int = 0
    discarded_values: int = 0


@dataclass(slots=True)
class RunProgress:
    """Counts since the run began; rows that an earlier run committed are not in them.

    `bytes_total` is what the sources know they will read, or None. `oldest_uncommitted_seconds` is the
    age of the oldest row that was read and is not yet durable in every sink, or None if there is none.
    `stage` says in a few words what the run is doing now, such as `reading` or `draining`. `sources` has those that
    keep a health, under the pipeline's own names; several pipelines that share a source have the same one.
    """

    pipeline: str = ""
    delivery: Delivery = "exactly-once"
    rows_in: int = 0
    rows_out: int = 0
    filtered: int = 0
    skipped: int = 0
    dead_letters: int = 0
    discarded_values: int = 0
    bytes_in: int = 0
    bytes_total: int | None = None
    oldest_uncommitted_seconds: float | None = None
    stage: str = "starting"
    sinks: dict[str, SinkProgress] = field(default_factory=dict)
    sources: dict[str, SourceHealth] = field(default_factory=dict)

    def expects(self, raw_bytes: int | None) -> None:
        """One more source says how much it will read; None if it cannot know, and then nobody can."""
        known = self.bytes_total if self._sized else 0
        self.bytes_total = None if known is None or raw_bytes is None else known + raw_bytes
        self._sized = True

    _sized: bool = False


def total(parts: Sequence[RunProgress]) -> RunProgress:
    """The progress of several pipelines as one, for the display. What they share is counted for each."""
    if len(parts) == 1:
        return parts[0]
    ages = [part.oldest_uncommitted_seconds for part in parts if part.oldest_uncommitted_seconds is not None]
    sizes = [part.bytes_total for part in parts if part.bytes_total is not None]
    return RunProgress(
        pipeline=f"{len(parts)} pipelines",
        rows_in=sum(part.rows_in for part in parts),
        rows_out=sum(part.rows_out for part in parts),
        filtered=sum(part.filtered for part in parts),
        skipped=sum(part.skipped for part in parts),
        dead_letters=sum(part.dead_letters for part in parts),
        discarded_values=sum(part.discarded_values for part in parts),
        bytes_in=sum(part.bytes_in for part in parts),
        bytes_total=sum(sizes) if len(sizes) == len(parts) else None,
        oldest_uncommitted_seconds=max(ages, default=None),
        stage=parts[0].stage if parts else "",
        sinks={f"{part.pipeline}.{name}": sink for part in parts for name, sink in part.sinks.items()},
        sources={f"{part.pipeline}.{name}": source for part in parts for name, source in part.sources.items()},
    )


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run failed: a stable code to match on, a sentence to read, and the stage if one failed."""

    code: str
    message: str
    stage: str | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The outcome of one run.

    rows_in: records read, bad ones included. rows_out: rows handed to sinks, to each its own. filtered: rows
    that stages removed or no edge took. skipped: bad records passed over on request. dead_letters: records and
    rows put there in this run. discarded_values: values that sinks left out of committed rows, as the pipeline's
    schema contract says. `seconds` is wall time and `rows_per_second` is rows_in over it. `delivery` is the
    weakest promise among the sinks. sources: those that keep a health, as it was at the end.

    status: `succeeded` read everything; `drained` was asked to stop and committed what it had read;
    `cancelled` was stopped at once, and the next run goes on from the last commit; `failed` has an error.
    """

    pipeline: str
    status: RunStatus
    rows_in: int
    rows_out: int
    filtered: int
    skipped: int
    dead_letters: int
    discarded_values: int
    seconds: float
    rows_per_second: float
    bytes_in: int
    delivery: Delivery
    sinks: tuple[SinkReport, ...]
    sources: tuple[SourceReport, ...]
    error: RunError | None = None

    @classmethod
    def of(
        cls,
        progress: RunProgress,
        *,
        status: RunStatus,
        seconds: float,
        error: ConveyordError | None = None,
        stage: str | None = None,
    ) -> RunSummary:
        """The summary of a run that ended with `progress`."""
        return cls(
            pipeline=progress.pipeline,
            status=status,
            rows_in=progress.rows_in,
            rows_out=progress.rows_out,
            filtered=progress.filtered,
            skipped=progress.skipped,
            dead_letters=progress.dead_letters,
            discarded_values=progress.discarded_values,
            seconds=seconds,
            rows_per_second=rate(progress.rows_in, seconds),
            bytes_in=progress.bytes_in,
            delivery=progress.delivery,
            sinks=tuple(
                SinkReport(name, sink.rows, sink.files, sink.commits, sink.discarded_values)
                for name, sink in progress.sinks.items()
            ),
            sources=tuple(SourceReport.of(name, health) for name, health in progress.sources.items()),
            error=None if error is None else RunError(error.code, str(error), stage),
        )

    def as_json(self) -> dict[str, Any]:
        """The documented shape: plain dicts, lists and scalars, every key always present."""
        shape = asdict(self)
        shape["seconds"] = round(self.seconds, 3)
        shape["rows_per_second"] = round(self.rows_per_second, 1)
        return shape


def rate(count: int, seconds: float) -> float:
    """`count` per second, and 0 for a run too short to time."""
    return count / seconds if seconds > 0 else 0.0
