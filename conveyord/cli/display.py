"""What a person sees of a run: a live block on a terminal, a log line now and then elsewhere, a summary."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from conveyord.core.units import counted, format_bytes, format_seconds
from conveyord.engine.health import SourceReport
from conveyord.engine.summary import RunProgress, RunSummary, rate

if TYPE_CHECKING:
    from rich.console import RenderableType

log = structlog.get_logger(__name__)

LIVE_SECONDS = 0.25  # four times a second looks alive and costs nothing measurable
LOG_SECONDS = 10.0
RATE_WINDOW_SECONDS = 5.0  # long enough to smooth commits, short enough to show a stall

Pairs = list[tuple[str, str]]


class Display(Protocol):
    """Shows progress until it is cancelled."""

    async def follow(self, latest: Callable[[], RunProgress]) -> None: ...


class RowRate:
    """Rows per second over the last RATE_WINDOW_SECONDS."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, now_seconds: float, rows: int) -> float:
        """Add a sample and return the rate. Samples older than the window are forgotten."""
        self._samples.append((now_seconds, rows))
        while len(self._samples) > 2 and self._samples[1][0] <= now_seconds - RATE_WINDOW_SECONDS:
            self._samples.popleft()
        since_seconds, rows_then = self._samples[0]
        return rate(rows - rows_then, now_seconds - since_seconds)


def make_display(pipeline: str, *, live_allowed: bool) -> Display:
    """A live display if stderr is a terminal that can move its cursor, else log lines."""
    if live_allowed and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return LiveDisplay(pipeline)
    return LogDisplay(pipeline)


class LogDisplay:
    """One log line every LOG_SECONDS, and one for each source that keeps a health."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline

    async def follow(self, latest: Callable[[], RunProgress]) -> None:
        """Log until cancelled."""
        rows_per_second = RowRate()
        rows_per_second.update(trio.current_time(), latest().rows_in)
        while True:
            await trio.sleep(LOG_SECONDS)
            progress = latest()
            current = rows_per_second.update(trio.current_time(), progress.rows_in)
            log.info("progress", pipeline=self._pipeline, **progress_fields(progress, current))
            for name, health in progress.sources.items():
                fields = asdict(SourceReport.of(name, health))
                log.info("source", pipeline=self._pipeline, source=fields.pop("name"), **fields)


class LiveDisplay:
    """A block of lines on stderr, redrawn in place and removed at the end: the summary replaces it."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline

    async def follow(self, latest: Callable[[], RunProgress]) -> None:
        """Redraw until cancelled."""
        from rich.console import Console
        from rich.live import Live

        rows_per_second, started = RowRate(), trio.current_time()
        # Standard output is not rich's to redirect: it may be a file that a sink or -o json writes to.
        live = Live(console=Console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=False)
        with live:
            while True:
                now, progress = trio.current_time(), latest()
                current = rows_per_second.update(now, progress.rows_in)
                live.update(self._block(progress, current, now - started), refresh=True)
                await trio.sleep(LIVE_SECONDS)

    def _block(self, progress: RunProgress, rows_per_second: float, seconds: float) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_row(Text(self._pipeline, style="bold"), Text(f"{progress.stage}, {format_seconds(seconds)}"))
        for label, text in progress_lines(progress, rows_per_second):
            grid.add_row(Text(f"  {label}", style="dim"), Text(text))
        return grid


def progress_lines(progress: RunProgress, rows_per_second: float) -> Pairs:
    """The progress as pairs of label and text."""
    lines = [("rows in", f"{progress.rows_in:,}   {rows_per_second:,.0f}/s")]
    out = f"{progress.rows_out:,}"
    if progress.filtered:
        out += f"   {progress.filtered:,} filtered"
    if progress.skipped:
        out += f"   {progress.skipped:,} bad, skipped"
    if progress.dead_letters:
        out += f"   {counted(progress.dead_letters, 'dead letter')}"
    lines.append(("rows out", out))
    read = format_bytes(progress.bytes_in)
    if progress.bytes_total:
        share = min(100.0, 100 * progress.bytes_in / progress.bytes_total)
        read += f" of {format_bytes(progress.bytes_total)}   {share:.0f} %"
    lines.append(("bytes", read))
    for name, health in progress.sources.items():
        lines.append((name, _read(SourceReport.of(name, health))))
    for name, sink in progress.sinks.items():
        lines.append((name, _written(sink.rows, sink.files, sink.commits)))
    age = progress.oldest_uncommitted_seconds
    lines.append(("uncommitted", "nothing" if age is None else f"oldest {format_seconds(age)}"))
    return lines


def progress_fields(progress: RunProgress, rows_per_second: float) -> dict[str, int | float | str | None]:
    """The progress as fields of a log line."""
    age = progress.oldest_uncommitted_seconds
    return {
        "stage": progress.stage,
        "rows_in": progress.rows_in,
        "rows_out": progress.rows_out,
        "filtered": progress.filtered,
        "skipped": progress.skipped,
        "dead_letters": progress.dead_letters,
        "rows_per_second": round(rows_per_second),
        "bytes_in": progress.bytes_in,
        "bytes_total": progress.bytes_total,
        "commits": sum(sink.commits for sink in progress.sinks.values()),
        "oldest_uncommitted_seconds": None if age is None else round(age, 1),
    }


def _written(rows: int, files: int, commits: int) -> str:
    counts = ((rows, "row"), (files, "file"), (commits, "commit"))
    return "   ".join(counted(count, word) for count, word in counts)


def _read(source: SourceReport) -> str:
    """A source in one line: what it read, how far it is behind, and what befell it, if anything did."""
    parts = [counted(source.records, "record")]
    if source.lag_records is None:
        parts.append("lag unknown")
    elif source.lag_records == 0:
        parts.append("nothing unread")
    else:
        age = "" if source.lag_seconds is None else f", the oldest {format_seconds(source.lag_seconds)} old"
        parts.append(f"{source.lag_records:,} unread{age}")
    parts.append(counted(source.partitions, "partition"))
    counts = ((source.rebalances, "rebalance"), (source.pauses, "pause"))
    parts += [counted(count, word) for count, word in counts if count]
    if source.gaps:
        parts.append(f"{counted(source.gaps, 'offset')} lost")
    parts += [f"{counted(count, 'error')} {code}" for code, count in source.errors.items()]
    return "   ".join(parts)


def summary_text(summary: RunSummary, *, hints: Sequence[tuple[str, str]]) -> str:
    """The end of a run for people: how it ended, what it came to, where it lies, what to try next.

    The error of a failed run is not in it: that goes to stderr.
    """
    endings = {
        "succeeded": "finished",
        "drained": "stopped in order; the same command goes on from here",
        "cancelled": "stopped at once; the same command goes on from the last commit",
        "failed": "failed",
    }
    lines = [f"{summary.pipeline}: {endings[summary.status]}, after {format_seconds(summary.seconds)}"]
    if summary.status == "failed" and not summary.rows_in:
        return lines[0]
    pairs: Pairs = [
        (
            "rows in",
            f"{summary.rows_in:,}   {summary.rows_per_second:,.0f}/s   {format_bytes(summary.bytes_in)}",
        )
    ]
    pairs.extend((source.name, _read(source)) for source in summary.sources)
    if summary.filtered:
        pairs.append(("filtered", f"{summary.filtered:,}"))
    if summary.skipped:
        pairs.append(("skipped", counted(summary.skipped, "bad record")))
    if summary.dead_letters:
        pairs.append(("dead letters", f"{summary.dead_letters:,}   conveyord dlq list"))
    if summary.discarded_values:
        pairs.append(("discarded", f"{counted(summary.discarded_values, 'value')}, as the schema contract says"))
    pairs.append(("rows out", f"{summary.rows_out:,}"))
    for sink in summary.sinks:
        pairs.append((sink.name, _written(sink.rows, sink.files, sink.commits)))
    pairs.append(("delivery", summary.delivery))
    if summary.status != "failed" or any(sink.commits for sink in summary.sinks):
        pairs.extend(hints)
    width = max(len(label) for label, _ in pairs)
    return "\n".join(lines + [f"  {label:<{width}}  {text}" for label, text in pairs])
