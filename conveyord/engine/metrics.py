"""What a run tells Prometheus: its progress as metrics, read when somebody asks.

`PIPELINE`, `SINK` and `SOURCE` are all there is, beside what prometheus-client tells of the process. docs/metrics.md
is held to them. Nothing is counted here: a run keeps its figures in any case, so metrics cost it nothing between two
scrapes. Whoever imports this imports prometheus-client, so it is imported where metrics are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from conveyord import __version__
from conveyord.engine.health import LAGS_SHOWN_MAX, SourceHealth, shown_lags
from conveyord.engine.summary import RunProgress, SinkProgress

T = TypeVar("T")
Kind = Literal["counter", "gauge"]
Value = float | None | Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Figure(Generic[T]):
    """One metric. text: what it is and when it moves, for HELP and docs/metrics.md.

    value: a number, None if it is not known (then there is no sample), or numbers by the values of the label `by`.
    """

    name: str
    kind: Kind
    unit: str
    text: str
    value: Callable[[T], Value]
    by: str | None = None

    def family(self, labels: tuple[str, ...], things: Iterable[tuple[tuple[str, ...], T]]) -> Metric:
        """The metric with its samples, one or more for each thing. Things come with the values of `labels`."""
        names = labels if self.by is None else (*labels, self.by)
        # A total's name loses its suffix here and gets it back when it is written.
        made = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = made(self.name, self.text, labels=names)
        for values, thing in things:
            found = self.value(thing)
            if isinstance(found, Mapping):
                for key in sorted(found):
                    family.add_metric((*values, key), found[key])
            elif found is not None:
                family.add_metric(values, found)
        return family


PIPELINE_LABELS = ("pipeline",)
PIPELINE: tuple[Figure[RunProgress], ...] = (
    Figure(
        "conveyord_rows_in_total",
        "counter",
        "records",
        "Records read, bad ones included. Moves when a source has handed on their batch.",
        lambda run: run.rows_in,
    ),
    Figure(
        "conveyord_rows_out_total",
        "counter",
        "rows",
        "Rows taken by sinks, by each its own. Moves before they are committed.",
        lambda run: run.rows_out,
    ),
    Figure(
        "conveyord_rows_filtered_total",
        "counter",
        "rows",
        "Rows that a stage removed or that no edge took.",
        lambda run: run.filtered,
    ),
    Figure(
        "conveyord_records_skipped_total",
        "counter",
        "records",
        "Bad records passed over because of --skip-bad.",
        lambda run: run.skipped,
    ),
    Figure(
        "conveyord_dead_letters_total",
        "counter",
        "letters",
        "Records and rows put among the dead letters. Moves when they are on disk.",
        lambda run: run.dead_letters,
    ),
    Figure(
        "conveyord_read_bytes_total",
        "counter",
        "bytes",
        "Bytes read, as they were before decoding. Moves with conveyord_rows_in_total.",
        lambda run: run.bytes_in,
    ),
    Figure(
        "conveyord_expected_bytes",
        "gauge",
        "bytes",
        "Bytes that this run will have read at its end. Absent if a source has no end, or does not know it.",
        lambda run: run.bytes_total,
    ),
    Figure(
        "conveyord_oldest_uncommitted_seconds",
        "gauge",
        "seconds",
        "Age of the oldest batch that was read and is not yet durable in every sink; 0 if there is none.",
        lambda run: run.oldest_uncommitted_seconds or 0.0,
    ),
)

SINK_LABELS = ("pipeline", "sink")
SINK: tuple[Figure[SinkProgress], ...] = (
    Figure(
        "conveyord_sink_rows_total",
        "counter",
        "rows",
        "Rows written. Moves when they are committed; at sinks without commits, when they are sent.",
        lambda sink: sink.rows,
    ),
    Figure(
        "conveyord_sink_files_total",
        "counter",
        "files",
        "Files written. Moves when the rows in them are committed.",
        lambda sink: sink.files,
    ),
    Figure(
        "conveyord_sink_commits_total",
        "counter",
        "commits",
        "Commits. Moves when rows are durable and their positions with them.",
        lambda sink: sink.commits,
    ),
    Figure(
        "conveyord_sink_discarded_values_total",
        "counter",
        "values",
        "Values left out of committed rows, as the schema contract says.",
        lambda sink: sink.discarded_values,
    ),
)

SOURCE_LABELS = ("pipeline", "source")
SOURCE: tuple[Figure[SourceHealth], ...] = (
    Figure(
        "conveyord_source_records_total",
        "counter",
        "records",
        "Records taken from where they come from; those that are read again after an error count again.",
        lambda source: source.records,
    ),
    Figure(
        "conveyord_source_bytes_total",
        "counter",
        "bytes",
        "Bytes of the keys and values of these records, before decoding.",
        lambda source: source.bytes,
    ),
    Figure(
        "conveyord_source_lag_records",
        "gauge",
        "records",
        "Records that are there and have not been sent on, over all partitions. Absent until it is known.",
        lambda source: source.lag_records,
    ),
    Figure(
        "conveyord_source_partition_lag_records",
        "gauge",
        "records",
        f"The same for each partition: the first {LAGS_SHOWN_MAX} by name, and the sum of all others as partition "
        "others.",
        shown_lags,
        by="partition",
    ),
    Figure(
        "conveyord_source_lag_seconds",
        "gauge",
        "seconds",
        "How long ago the next record to be sent on was written, in the partition where that is longest; "
        "0 if nothing is unread. Absent if it is not known.",
        lambda source: source.lag_seconds,
    ),
    Figure(
        "conveyord_source_partitions",
        "gauge",
        "partitions",
        "Partitions that the source reads now.",
        lambda source: source.partitions,
    ),
    Figure(
        "conveyord_source_rebalances_total",
        "counter",
        "changes",
        "Changes of what partitions the source reads, after the first assignment.",
        lambda source: source.rebalances,
    ),
    Figure(
        "conveyord_source_pauses_total",
        "counter",
        "pauses",
        "Times that reading was paused because the pipeline was full.",
        lambda source: source.pauses,
    ),
    Figure(
        "conveyord_source_gaps_total",
        "counter",
        "offsets",
        "Offsets that were gone before they could be read. Anything but 0 means that records were lost upstream.",
        lambda source: source.gaps,
    ),
    Figure(
        "conveyord_source_errors_total",
        "counter",
        "errors",
        "Errors of the connection and the like, those that trying again got over included, by code (docs/errors.md). "
        "A code has no sample before its first error.",
        lambda source: source.errors,
        by="code",
    ),
)


class RunCollector(Collector):
    """Reads the progress of pipelines whenever it is collected. To be collected in the run's trio thread."""

    def __init__(self, progress: Sequence[RunProgress]) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        """Every metric, those without samples too, so that one may see what there is."""
        build = InfoMetricFamily("conveyord_build", "The version that runs; always 1.")
        build.add_metric((), {"version": __version__})
        yield build
        pipelines = InfoMetricFamily(
            "conveyord_pipeline",
            "A pipeline of this run and the weakest promise among its sinks; always 1.",
            labels=PIPELINE_LABELS,
        )
        for run in self._progress:
            pipelines.add_metric((run.pipeline,), {"delivery": run.delivery})
        yield pipelines
        for of_run in PIPELINE:
            yield of_run.family(PIPELINE_LABELS, (((run.pipeline,), run) for run in self._progress))
        for of_sink in SINK:
            yield of_sink.family(SINK_LABELS, self._each(lambda run: run.sinks))
        for of_source in SOURCE:
            yield of_source.family(SOURCE_LABELS, self._each(lambda run: run.sources))

    def _each(self, parts: Callable[[RunProgress], Mapping[str, T]]) -> Iterator[tuple[tuple[str, str], T]]:
        return (((run.pipeline, name), part) for run in self._progress for name, part in parts(run).items())


def run_registry(progress: Sequence[RunProgress]) -> CollectorRegistry:
    """The metrics of pipelines that run together, and of the process they run in."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(RunCollector(progress))
    return registry
