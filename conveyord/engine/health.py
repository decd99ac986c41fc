"""How a source that others write to is doing: what it has read, how far it is behind, and what befell it.

A source that knows these figures makes one `SourceHealth`, has it as its attribute `health` for as long as it lives,
and changes it in place, in the trio thread alone. The display, the summary and the metrics read it whenever they
like, without asking, so no lock and no message is needed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class SourceHealth:
    """Counters, which only grow while the source lives (also when `run` is called again), and gauges.

    Gauges are to be brought up to date every second or so, also while the source waits: nothing here ages by itself,
    so a source that stands still with old figures would look healthy. Gauges are of the partitions that the source
    has now: what was revoked leaves `partitions`, `lags` and the sums.
    """

    records: int = 0
    """Counter: records taken from where they come from, bad ones and tombstones included. Those that are read
    again after an error count again, so this may exceed the run's `rows_in`."""
    bytes: int = 0
    """Counter: of their keys and values, as they came, before decoding; overheads of the protocol are not in it."""
    lag_records: int | None = None
    """Gauge: records that are there and have not been sent on, over all partitions: the sum of `lags`. Where only
    offsets are known, how many offsets, so that holes (compaction, markers of transactions) count too. None until
    it is known for every partition that the source has."""
    lag_seconds: float | None = None
    """Gauge: how long ago the next record that has not been sent on was written, by the record's own timestamp, for
    the partition where that is longest; 0.0 if nothing is unread, and never less (clocks differ). Where the
    next record has not been fetched yet, the time of the last one sent on stands for it: the figure is then too large
    rather than too small. None if records have no timestamps, or nothing was read yet and something is there."""
    partitions: int = 0
    """Gauge: those that the source reads now."""
    rebalances: int = 0
    """Counter: changes of the assignment after the first one."""
    pauses: int = 0
    """Counter: times that reading was paused because the pipeline was full."""
    gaps: int = 0
    """Counter: offsets that were gone before they could be read."""
    errors: Counter[str] = field(default_factory=Counter)
    """Counter: what went wrong outside of records, by `ConveyordError.code`, what was got over by trying again
    included. Codes are few; never a message, an address or a topic."""
    lags: dict[str, int] = field(default_factory=dict)
    """Gauge: `lag_records` by the partition's name. Any number is fine: metrics tell LAGS_SHOWN_MAX of them."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """The health of one source as it was at some moment. What a key means is said in `SourceHealth`."""

    name: str
    records: int
    bytes: int
    lag_records: int | None
    lag_seconds: float | None
    partitions: int
    rebalances: int
    pauses: int
    gaps: int
    errors: dict[str, int]

    @classmethod
    def of(cls, name: str, health: SourceHealth) -> SourceReport:
        """`health` as it is now."""
        return cls(
            name=name,
            records=health.records,
            bytes=health.bytes,
            lag_records=health.lag_records,
            lag_seconds=None if health.lag_seconds is None else round(health.lag_seconds, 3),
            partitions=health.partitions,
            rebalances=health.rebalances,
            pauses=health.pauses,
            gaps=health.gaps,
            # Not the Counter itself: it goes on counting, and `asdict` would make a Counter of pairs of it.
            errors=dict(sorted(health.errors.items())),
        )


LAGS_SHOWN_MAX = 256  # series per source: more than a topic usually has, and a scrape of a few milliseconds


def shown_lags(health: SourceHealth) -> dict[str, int]:
    """`lags` by partition, in the order of their names: the first LAGS_SHOWN_MAX, then the others' sum as `others`.

    By name and not by size, because a series that comes and goes with its rank costs a server of metrics most.
    """
    names = sorted(health.lags)
    shown = {name: health.lags[name] for name in names[:LAGS_SHOWN_MAX]}
    if len(names) > LAGS_SHOWN_MAX:
        shown["others"] = sum(health.lags[name] for name in names[LAGS_SHOWN_MAX:])
    return shown
