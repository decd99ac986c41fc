"""What the displays compute; that they are shown at all is in test_cli_run.py."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from conveyord.cli.display import LOG_SECONDS, RATE_WINDOW_SECONDS, LogDisplay, RowRate, progress_lines, summary_text
from conveyord.core.errors import Refused
from conveyord.engine.contracts import SinkReport
from conveyord.engine.health import SourceHealth
from conveyord.engine.summary import RunProgress, RunSummary, SinkProgress

BEHIND = SourceHealth(
    records=12_345,
    bytes=10**6,
    lag_records=1234,
    lag_seconds=75.2,
    partitions=8,
    rebalances=1,
    pauses=2,
    gaps=3,
    errors=Counter({"UNAVAILABLE": 4, "REFUSED": 1}),
    lags={"t/0": 1234},
)
BEHIND_LINE = (
    "12,345 records   1,234 unread, the oldest 1m 15s old   8 partitions   1 rebalance   2 pauses   3 offsets lost   "
    "1 error REFUSED   4 errors UNAVAILABLE"
)


def test_the_rate_is_of_the_last_seconds_only() -> None:
    rate = RowRate()
    assert rate.update(0.0, 0) == 0
    assert rate.update(1.0, 1000) == 1000
    for second in range(2, 20):  # nothing more comes in
        current = rate.update(float(second), 1000)
    assert current == 0


@given(st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 10**6)), min_size=1, max_size=50))
def test_the_rate_never_leaves_the_range_of_what_happened(steps: list[tuple[float, int]]) -> None:
    rate, now, rows = RowRate(), 0.0, 0
    rate.update(now, rows)
    fastest = 0.0
    for seconds, more in steps:
        now, rows = now + seconds, rows + more
        fastest = max(fastest, more / seconds)
        assert 0 <= rate.update(now, rows) <= fastest * 1.001


async def test_log_lines_come_every_ten_seconds(autojump_clock: trio.testing.MockClock) -> None:
    progress = RunProgress(rows_in=5, bytes_in=7)
    with capture_logs() as logs, trio.move_on_after(LOG_SECONDS * 3.5):
        await LogDisplay("default/p").follow(lambda: progress)
    assert [entry["event"] for entry in logs] == ["progress"] * 3
    assert (logs[0]["pipeline"], logs[0]["rows_in"], logs[0]["bytes_in"]) == ("default/p", 5, 7)
    assert LOG_SECONDS > RATE_WINDOW_SECONDS


async def test_every_source_with_a_health_has_a_log_line_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    progress = RunProgress(sources={"orders": BEHIND, "users": SourceHealth()})
    with capture_logs() as logs, trio.move_on_after(LOG_SECONDS * 1.5):
        await LogDisplay("default/p").follow(lambda: progress)
    assert [entry["event"] for entry in logs] == ["progress", "source", "source"]
    assert {key: logs[1][key] for key in logs[1] if key not in {"event", "log_level"}} == {
        "pipeline": "default/p",
        "source": "orders",
        "records": 12_345,
        "bytes": 10**6,
        "lag_records": 1234,
        "lag_seconds": 75.2,
        "partitions": 8,
        "rebalances": 1,
        "pauses": 2,
        "gaps": 3,
        "errors": {"REFUSED": 1, "UNAVAILABLE": 4},
    }
    assert (logs[2]["source"], logs[2]["lag_records"], logs[2]["errors"]) == ("users", None, {})


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (RunProgress(), ("uncommitted", "nothing")),
        (RunProgress(oldest_uncommitted_seconds=61.2), ("uncommitted", "oldest 1m 01s")),
        (RunProgress(bytes_in=1 << 20), ("bytes", "1.00 MiB")),
        (RunProgress(bytes_in=1 << 20, bytes_total=4 << 20), ("bytes", "1.00 MiB of 4.00 MiB   25 %")),
        (RunProgress(rows_out=2, filtered=1, skipped=3), ("rows out", "2   1 filtered   3 bad, skipped")),
        (RunProgress(sinks={"sink": SinkProgress(1000, 1, 2)}), ("sink", "1,000 rows   1 file   2 commits")),
        (RunProgress(sources={"orders": BEHIND}), ("orders", BEHIND_LINE)),
        (RunProgress(sources={"orders": SourceHealth()}), ("orders", "0 records   lag unknown   0 partitions")),
        (
            RunProgress(sources={"orders": SourceHealth(records=1, lag_records=0, lag_seconds=0.0, partitions=1)}),
            ("orders", "1 record   nothing unread   1 partition"),
        ),
        (
            RunProgress(sources={"orders": SourceHealth(lag_records=2, partitions=1)}),
            ("orders", "0 records   2 unread   1 partition"),
        ),
    ],
)
def test_progress_shows_what_matters(progress: RunProgress, expected: tuple[str, str]) -> None:
    assert expected in progress_lines(progress, 10.0)


def test_a_summary_has_a_line_for_every_source_with_a_health() -> None:
    progress = RunProgress(pipeline="default/p", rows_in=10, sources={"orders": BEHIND})
    text = summary_text(RunSummary.of(progress, status="drained", seconds=2), hints=[])
    assert f"  orders    {BEHIND_LINE}\n" in text


def test_a_failed_summary_has_no_hints_unless_something_was_committed() -> None:
    progress = RunProgress(pipeline="default/p", rows_in=10)
    failed = RunSummary.of(progress, status="failed", seconds=2, error=Refused("no"))
    text = summary_text(failed, hints=[("table", "here")])
    assert text.startswith("default/p: failed, after 2.0 s\n  rows in   10 ")
    assert "here" not in text
    assert "no" not in text
    progress.sinks["sink"] = SinkProgress(10, 1, 1)
    partly = RunSummary.of(progress, status="failed", seconds=2)
    assert partly.sinks == (SinkReport("sink", 10, 1, 1),)
    assert "here" in summary_text(partly, hints=[("table", "here")])
