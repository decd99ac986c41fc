"""Pipelines from Kafka as real processes, and what others say of their tables, dead letters and group offsets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.harness import HEAD, Job, Running, conveyord
from tests.kafka.cluster import Cluster

SOON = {"every": "0.2s"}  # commits, so that a test need not wait for them


@dataclass
class KafkaJob(Job):
    """A pipeline from `topic` into one table. With `follow` it reads until it is stopped."""

    source: dict[str, Any] = field(default_factory=dict)
    kafka: Cluster = field(kw_only=True)
    topic: str = field(kw_only=True)
    dlq: bool = field(default=False, kw_only=True)

    @property
    def file(self) -> Path:
        """The pipeline file, written anew. JSON is YAML."""
        path = self.home / f"{self.name}.yaml"
        source = {"type": "kafka", "brokers": self.kafka.bootstrap, "topics": [self.topic], "linger": "0.05s"}
        spec = {"source": {**source, **self.source}, "steps": self.steps, "sink": self.destination()}
        if self.dlq:
            spec["dlq"] = {}
        path.write_text(f"{HEAD}metadata: {json.dumps({'name': self.name})}\nspec: {json.dumps(spec)}\n", "utf-8")
        return path

    def destination(self) -> dict[str, Any]:
        """The sink as the file has it."""
        return {"type": "iceberg", "table": self.table, "commit": SOON, **self.sink}

    @contextmanager
    def following(self, *flags: str | Path) -> Iterator[Running]:
        """A run that reads on and on; killed if the test fails before it has ended it."""
        running = self.start(*flags)
        try:
            yield running
        finally:
            if not running.has_ended():
                running.killed_after(0)

    def letters(self) -> list[dict[str, Any]]:
        """Every dead letter, as `dlq list --each` tells it."""
        ended = conveyord("dlq", "list", "--each", "--data-dir", self.data_dir, "-o", "json", cwd=self.home)
        assert ended.code == 0, ended.err
        return list(json.loads(ended.out)["letters"])

    def fence(self) -> dict[str, int]:
        """By partition, the offset that the table names, read from its property."""
        if self.metadata_location() is None:
            return {}
        return fence_of(self.static_table().properties, self.name)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """`sql`, or nothing if the table has no files yet."""
        if self.snapshot_id() is None or not list(self.static_table().scan().plan_files()):
            return []
        return self.sql(query)

    def count(self) -> int:
        """How many rows the table has now."""
        return int(found[0][0]) if (found := self.rows("SELECT count(*) FROM t")) else 0


def fence_of(properties: Mapping[str, str], name: str) -> dict[str, int]:
    """The positions that a pipeline's property of a table names, by partition."""
    text = properties.get(f"conveyord.default/{name}.fence")
    return {} if text is None else {entry[1]: entry[2] for entry in json.loads(text)["positions"]}


def values(numbers: Iterable[int], **more: Any) -> list[bytes]:
    """A record for each id, small enough for hundreds of thousands."""
    return [json.dumps({"id": number, "name": f"n{number % 1000}", **more}).encode() for number in numbers]
