"""Dead letters behind the sink `iceberg_topics`: each topic's are replayed into its own table, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conveyord.core.errors import Retryable
from conveyord.core.flow.positions import Partition
from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine.iceberg_table import IcebergTable
from conveyord.engine.registry import Registry
from conveyord.storage.dead_letters.store import DeadLetterStore
from tests.engine.graph_rig import RigRegistry, letters_in, line, numbered, source, stage, transform
from tests.engine.replay_rig import Flawed, Readable, counts, replayed, run
from tests.engine.topics_rig import tables
from tests.storage.crash_rig import Crashed

ROWS, TOPICS = 18, 3


class Topics(Readable):
    """The rows in turn as records of as many topics: `n` is of the topic `t<n % TOPICS>`."""

    def _lane(self, out: Any, partition: Partition, *arguments: Any) -> Any:
        return super()._lane(out, Partition(partition.source, f"t{partition.name[1:]}[0]"), *arguments)


@dataclass
class FlawedTopics(Flawed):
    """A world with a source of topics."""

    def registry(self) -> Registry:
        known = super().registry()
        assert isinstance(known, RigRegistry)
        return RigRegistry(known.by_name, {**known.own, "source.rows": type("Topics", (Topics,), {"world": self})})


@pytest.fixture
def world() -> FlawedTopics:
    return FlawedTopics({"t": numbered(ROWS)})


def into_topics() -> Pipeline:
    return line(
        source(partitions=TOPICS), transform("a", "fussy"), stage("out", "sink", "iceberg_topics", table="raw.{topic}")
    )


def found(data_dir: Path) -> dict[str, list[int]]:
    return {name: sorted(table.scan().to_arrow()["n"].to_pylist()) for name, table in tables(data_dir).items()}


def expected(*lacking: int) -> dict[str, list[int]]:
    return {f"t{k}": [n for n in range(k, ROWS, TOPICS) if n not in lacking] for k in range(TOPICS)}


def test_letters_of_all_topics_are_replayed_into_their_tables(world: FlawedTopics, data_dir: Path) -> None:
    world.bad = {"a": {0, 4, 5, 6, 7}}
    run(world, data_dir, into_topics())
    assert found(data_dir) == expected(0, 4, 5, 6, 7)
    assert len(letters_in(data_dir)) == 5
    world.bad = {}
    report = replayed(world, data_dir, into_topics())
    assert report is not None
    assert counts(report) == (5, 0, 0, 0)
    assert found(data_dir) == expected()
    assert letters_in(data_dir) == []
    run(world, data_dir, into_topics())
    assert found(data_dir) == expected()


def test_a_replay_that_is_killed_behind_a_commit_doubles_nothing(
    world: FlawedTopics, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bad = {"a": {0, 4, 5}}
    run(world, data_dir, into_topics())
    world.bad = {}
    settle = DeadLetterStore.settle

    def killed(self: DeadLetterStore, lane: Any, up_to: int, at_micros: int) -> Any:
        if up_to > 0:
            raise Crashed
        return settle(self, lane, up_to, at_micros)

    with monkeypatch.context() as patch, pytest.raises(Crashed):
        patch.setattr(DeadLetterStore, "settle", killed)
        replayed(world, data_dir, into_topics())
    assert sum(map(len, found(data_dir).values())) == ROWS - 2, "the first lane's row is in its table"
    report = replayed(world, data_dir, into_topics())
    assert report is not None
    assert counts(report) == (3, 0, 0, 0)
    assert found(data_dir) == expected()


def test_letters_whose_table_is_away_wait_and_those_before_are_where_they_belong(
    world: FlawedTopics, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bad = {"a": {0, 1, 2}}
    run(world, data_dir, into_topics())
    world.bad = {}
    commit = IcebergTable.commit

    def away(self: IcebergTable, *arguments: Any) -> bool:
        if self.what == "table raw.t1":
            raise Retryable("away")
        return commit(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(IcebergTable, "commit", away)
        report = replayed(world, data_dir, into_topics())
    assert report is not None
    assert str(report.error) == "away"
    assert found(data_dir)["t1"] == expected(1)["t1"]
    report = replayed(world, data_dir, into_topics())
    assert report is not None
    assert report.error is None
    assert found(data_dir) == expected()
    assert letters_in(data_dir) == []


def test_what_fails_again_stays_a_letter_of_its_topic(world: FlawedTopics, data_dir: Path) -> None:
    world.bad = {"a": {0, 4}}
    run(world, data_dir, into_topics())
    world.bad = {"a": {4}}
    report = replayed(world, data_dir, into_topics())
    assert report is not None
    assert counts(report) == (1, 1, 0, 0)
    assert found(data_dir) == expected(4)
    (letter,) = letters_in(data_dir)
    assert letter.letter.key.partition.name == "t1[0]"
    world.bad = {}
    assert replayed(world, data_dir, into_topics()) is not None
    assert found(data_dir) == expected()
