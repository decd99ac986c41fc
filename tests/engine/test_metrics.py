"""What a run tells Prometheus: the metrics, their documentation, and the page they are on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from structlog.testing import capture_logs

from conveyord import __version__
from conveyord.engine.health import LAGS_SHOWN_MAX, SourceHealth, SourceReport, shown_lags
from conveyord.engine.metrics import (
    PIPELINE,
    PIPELINE_LABELS,
    SINK,
    SINK_LABELS,
    SOURCE,
    SOURCE_LABELS,
    Figure,
    run_registry,
)
from conveyord.engine.summary import RunProgress, RunSummary, SinkProgress, total
from conveyord.runtime.http_server import Declined, Head
from conveyord.runtime.metrics import COLLECTING_SHARE_MAX, FRESH_SECONDS, PATH, MetricsPage, serve_metrics

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
PLAIN = Head("GET", "/metrics", {})
OPEN = Head("GET", "/metrics", {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"})


def health() -> SourceHealth:
    return SourceHealth(
        records=100,
        bytes=5000,
        lag_records=7,
        lag_seconds=1.25,
        partitions=2,
        rebalances=1,
        pauses=3,
        gaps=4,
        errors=Counter({"UNAVAILABLE": 2}),
        lags={"orders/0": 0, "orders/1": 7},
    )


def progress() -> RunProgress:
    return RunProgress(
        pipeline="default/p",
        rows_in=10,
        rows_out=8,
        filtered=1,
        skipped=2,
        dead_letters=3,
        bytes_in=400,
        bytes_total=800,
        oldest_uncommitted_seconds=1.5,
        sinks={"lake": SinkProgress(8, 2, 1, 5)},
        sources={"orders": health()},
    )


def page_of(*runs: RunProgress) -> MetricsPage:
    return MetricsPage(run_registry(runs))


def answer(page: MetricsPage, head: Head = PLAIN) -> Any:
    with pytest.raises(Declined) as declined:
        page.admit(head)
    return declined.value.answer


def samples(page: MetricsPage) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = answer(page).body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_families(text)
        for sample in family.samples
    }


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


async def test_every_figure_of_a_run_is_told() -> None:
    told = samples(page_of(progress()))
    run, sink = labelled(pipeline="default/p"), labelled(pipeline="default/p", sink="lake")
    source = {"pipeline": "default/p", "source": "orders"}
    expected = {
        ("conveyord_build_info", labelled(version=__version__)): 1,
        ("conveyord_pipeline_info", labelled(pipeline="default/p", delivery="exactly-once")): 1,
        ("conveyord_rows_in_total", run): 10,
        ("conveyord_rows_out_total", run): 8,
        ("conveyord_rows_filtered_total", run): 1,
        ("conveyord_records_skipped_total", run): 2,
        ("conveyord_dead_letters_total", run): 3,
        ("conveyord_read_bytes_total", run): 400,
        ("conveyord_expected_bytes", run): 800,
        ("conveyord_oldest_uncommitted_seconds", run): 1.5,
        ("conveyord_sink_rows_total", sink): 8,
        ("conveyord_sink_files_total", sink): 2,
        ("conveyord_sink_commits_total", sink): 1,
        ("conveyord_sink_discarded_values_total", sink): 5,
        ("conveyord_source_records_total", labelled(**source)): 100,
        ("conveyord_source_bytes_total", labelled(**source)): 5000,
        ("conveyord_source_lag_records", labelled(**source)): 7,
        ("conveyord_source_partition_lag_records", labelled(**source, partition="orders/0")): 0,
        ("conveyord_source_partition_lag_records", labelled(**source, partition="orders/1")): 7,
        ("conveyord_source_lag_seconds", labelled(**source)): 1.25,
        ("conveyord_source_partitions", labelled(**source)): 2,
        ("conveyord_source_rebalances_total", labelled(**source)): 1,
        ("conveyord_source_pauses_total", labelled(**source)): 3,
        ("conveyord_source_gaps_total", labelled(**source)): 4,
        ("conveyord_source_errors_total", labelled(**source, code="UNAVAILABLE")): 2,
    }
    assert {key: value for key, value in told.items() if key[0].startswith("conveyord_")} == expected


async def test_what_is_not_known_has_no_sample_and_what_is_nothing_is_zero() -> None:
    unknown = RunProgress(pipeline="default/p", sources={"orders": SourceHealth()})
    told = {name: value for (name, _), value in samples(page_of(unknown)).items()}
    assert not {"conveyord_expected_bytes", "conveyord_source_lag_records", "conveyord_source_lag_seconds"} & set(told)
    assert told["conveyord_oldest_uncommitted_seconds"] == 0
    assert told["conveyord_source_records_total"] == 0


async def test_a_name_may_hold_what_the_format_uses_itself() -> None:
    name = 'a"b\\c\nd{e="f"} ü'
    told = samples(page_of(RunProgress(pipeline=name)))
    assert ("conveyord_rows_in_total", labelled(pipeline=name)) in told


async def test_open_metrics_are_told_to_those_who_ask() -> None:
    page = page_of(progress())
    told, plain = answer(page, OPEN), answer(page)
    assert told.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")

    def ours(families: Iterator[Any]) -> dict[Any, float]:
        found = [sample for family in families for sample in family.samples if sample.name.startswith("conveyord_")]
        return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}

    assert ours(open_metrics_families(told.body.decode())) == ours(text_families(plain.body.decode()))


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain;version=1.0.0;escaping=allow-utf-8",
        "application/openmetrics-text;version=0.0.1;q=0.5",
        "application/openmetrics-text;version=9",
        "application/openmetrics-text;version=x",
        ";;,=,;version",
    ],
)
async def test_whatever_else_is_accepted_the_text_format_comes(accept: str) -> None:
    told = answer(page_of(progress()), Head("GET", "/metrics", {"accept": accept}))
    assert (told.status, told.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/metrics", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics?name=x", 200),
        ("GET", "http://127.0.0.1:1/metrics", 200),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/metrics", 404),
        ("DELETE", "/metrics", 404),
    ],
)
async def test_there_is_nothing_else(method: str, target: str, status: int) -> None:
    assert answer(page_of(progress()), Head(method, target, {})).status == status


async def test_figures_are_collected_once_in_a_while_however_many_ask(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = progress()
    page = page_of(run)
    first = answer(page)
    run.rows_in = 11
    assert answer(page) is first
    assert "conveyord_rows_in" in answer(page, OPEN).body.decode()
    await trio.sleep(FRESH_SECONDS)
    assert 'conveyord_rows_in_total{pipeline="default/p"} 11.0' in answer(page).body.decode()


class Slow:
    """A collector that takes a second."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self.count = 0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.count += 1
        self._clock.jump(1.0)
        yield GaugeMetricFamily("a", "A.", value=self.count)


async def test_figures_that_take_long_to_collect_are_collected_seldom(autojump_clock: trio.testing.MockClock) -> None:
    slow, registry = Slow(autojump_clock), CollectorRegistry()
    registry.register(slow)  # type: ignore[arg-type]
    page = MetricsPage(registry)
    began = trio.current_time()
    for _ in range(1000):
        answer(page)
        await trio.sleep(0.1)
    assert slow.count <= 1 + (trio.current_time() - began) * COLLECTING_SHARE_MAX


class Breaks:
    """A collector that collects once, and then has a bug."""

    def __init__(self) -> None:
        self.count = 0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.count += 1
        if self.count > 1:
            raise KeyError("a bug")
        yield GaugeMetricFamily("a", "A.", value=1)


async def test_a_collector_that_fails_is_answered_and_logged_and_nothing_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    registry = CollectorRegistry()
    registry.register(Breaks())  # type: ignore[arg-type]
    page = MetricsPage(registry)
    assert answer(page).status == 200
    await trio.sleep(FRESH_SECONDS)
    with capture_logs() as logs:
        assert answer(page).status == answer(page).status == 500
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("metrics could not be collected", "KeyError: 'a bug'")
    ]


async def test_a_server_that_fails_is_logged_and_nothing_ends() -> None:
    class Listener:
        socket = trio.socket.socket()

        async def accept(self) -> trio.SocketStream:
            raise OSError(22, "Invalid argument")

    with capture_logs() as logs:
        await serve_metrics(run_registry([]), [Listener()])  # type: ignore[list-item]
    assert [entry["event"] for entry in logs] == ["metrics are no longer served"]


def test_partitions_beyond_the_limit_are_one_and_the_sum_stays() -> None:
    many = SourceHealth(lags={f"t/{number:04d}": number for number in reversed(range(LAGS_SHOWN_MAX + 44))})
    shown = shown_lags(many)
    assert list(shown)[:2] == ["t/0000", "t/0001"]
    assert (len(shown), list(shown)[-1]) == (LAGS_SHOWN_MAX + 1, "others")
    assert sum(shown.values()) == sum(many.lags.values())
    few = SourceHealth(lags=dict(list(many.lags.items())[:LAGS_SHOWN_MAX]))
    assert shown_lags(few) == few.lags


def test_a_summary_keeps_what_a_source_was_like_at_the_end() -> None:
    run = progress()
    summary = RunSummary.of(run, status="succeeded", seconds=1)
    run.sources["orders"].records += 1
    run.sources["orders"].errors["REFUSED"] += 1
    assert json.loads(json.dumps(summary.as_json()))["sources"] == [
        {
            "name": "orders",
            "records": 100,
            "bytes": 5000,
            "lag_records": 7,
            "lag_seconds": 1.25,
            "partitions": 2,
            "rebalances": 1,
            "pauses": 3,
            "gaps": 4,
            "errors": {"UNAVAILABLE": 2},
        }
    ]
    assert RunSummary.of(RunProgress(), status="succeeded", seconds=1).as_json()["sources"] == ()


def test_sources_of_pipelines_that_run_together_are_told_apart() -> None:
    both = total([progress(), RunProgress(pipeline="default/q", sources={"orders": SourceHealth(records=1)})])
    assert {name: one.records for name, one in both.sources.items()} == {"default/p.orders": 100, "default/q.orders": 1}
    assert SourceReport.of("orders", both.sources["default/q.orders"]).errors == {}


def documented() -> list[str]:
    """The rows of the tables in docs/metrics.md, as they must stand there."""

    def row(labels: tuple[str, ...], figure: Figure[Any]) -> str:
        names = ", ".join(f"`{label}`" for label in (*labels, *filter(None, [figure.by])))
        return f"| `{figure.name}` | {figure.kind} | {figure.unit} | {names} | {figure.text} |"

    scopes = ((PIPELINE_LABELS, PIPELINE), (SINK_LABELS, SINK), (SOURCE_LABELS, SOURCE))
    return [row(labels, figure) for labels, figures in scopes for figure in figures]  # type: ignore[attr-defined]


def test_every_metric_is_documented_as_it_is() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.startswith("| `conveyord_") and "_info`" not in line]
    assert found == documented()


async def test_the_document_names_all_that_is_served_and_nothing_else() -> None:
    text = answer(page_of(progress())).body.decode()
    served = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    tables = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert served == {name for line in tables for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_the_sample_for_prometheus_asks_where_the_document_serves() -> None:
    scrape = yaml.safe_load((DOCUMENT.parents[1] / "conf" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = scrape["scrape_configs"]
    ((target,),) = (group["targets"] for group in job["static_configs"])
    assert job.get("metrics_path", "/metrics") == PATH
    assert f'metrics = "{target}"' in DOCUMENT.read_text(encoding="utf-8")


def test_names_keep_the_conventions_of_prometheus() -> None:
    for figure in (*PIPELINE, *SINK, *SOURCE):
        assert re.fullmatch(r"conveyord_[a-z_]+", figure.name)
        assert figure.name.endswith("_total") == (figure.kind == "counter")
        base = figure.name.removesuffix("_total")
        assert (figure.unit in {"seconds", "bytes"}) == base.endswith(("_seconds", "_bytes"))
        assert figure.text.endswith(".")
