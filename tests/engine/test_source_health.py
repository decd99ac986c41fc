"""A source that keeps a health is in the progress of every pipeline that reads it, and in the summary."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from conveyord.core.flow.positions import Positions
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet
from conveyord.engine.health import SourceHealth
from conveyord.engine.summary import RunSummary
from tests.engine.graph_rig import RIG, RowsSource, World, line, numbered, run_now, sink, source

SHARED = 30


class WatchedRows(RowsSource):
    """Rows of the rig, with a health. It fails once, so that `run` is called twice."""

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self.health = SourceHealth(partitions=1)

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        assert self.health is not None
        self.health.records += SHARED
        self.health.lag_records, self.health.lag_seconds = 0, 0.0
        await super().run(out, fences=fences, drain=drain)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setitem(RIG, ("source", "rows"), WatchedRows)
    return World(tables={"t": numbered(SHARED)})


def test_a_source_that_pipelines_share_is_in_each_under_its_own_name(watched: World, tmp_path: Path) -> None:
    pipelines = [line(source(name), sink(), name=pipeline) for name, pipeline in (("a", "p"), ("b", "q"))]
    ended = run_now(watched, pipelines, tmp_path)
    assert not ended.failures.all
    assert watched.reads.total() == 1, "they were to share it"
    sources = {pipeline: one.sources for pipeline, one in ended.progress.items()}
    assert {pipeline: list(found) for pipeline, found in sources.items()} == {"default/p": ["a"], "default/q": ["b"]}
    assert sources["default/p"]["a"] is sources["default/q"]["b"]


def test_a_health_lives_on_when_a_source_is_run_again(watched: World, tmp_path: Path) -> None:
    watched.source_faults["in"] = [7]
    ended = run_now(watched, line(source(), sink()), tmp_path)
    assert not ended.failures.all
    summary = RunSummary.of(ended.progress["default/p"], status="succeeded", seconds=1)
    assert [(one.name, one.records, one.lag_records) for one in summary.sources] == [("in", 2 * SHARED, 0)]


def test_a_source_without_a_health_is_in_no_summary(tmp_path: Path) -> None:
    ended = run_now(World(tables={"t": numbered(5)}), line(source(), sink()), tmp_path)
    assert ended.progress["default/p"].sources == {}
