"""Many topics into a table each, by `topic_mapping`: real processes, over the mock and the real broker."""

from __future__ import annotations

import json
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from conveyord.storage.lake.audit import audit_table
from conveyord.storage.lake.reading import open_to_read
from tests.e2e.harness import CONVEYORD, HEAD, Ended, Running, TableFiles
from tests.kafka.broker import Broker
from tests.kafka.cluster import Cluster, Record
from tests.kafka.run_rig import SOON, fence_of, values

pytestmark = pytest.mark.timeout(300)


class Shop:
    """A pipeline over all topics that begin with one prefix: orders through a query, the others as they are."""

    def __init__(self, home: Path, kafka: Cluster) -> None:
        self.home = home
        self.kafka = kafka
        self.prefix = f"s{uuid.uuid4().hex[:10]}"
        self.data_dir = home / "data"
        self.file = home / "shop.yaml"
        self.write(follow=True)

    def write(self, *, follow: bool) -> None:
        source = {
            "type": "kafka",
            "brokers": self.kafka.bootstrap,
            "follow": follow,
            "topics": [f"^{self.prefix}[.].*"],
            "linger": "0.05s",
            "discover_every": "0.2s",
            "topic_mapping": [
                {
                    "topics": self.topic("orders"),
                    "table": "sales.orders",
                    "sql": "SELECT id, id * 2 AS twice FROM input_data WHERE id % 10 <> 0",
                    "partition_by": ["bucket(2, id)"],
                    "commit": SOON,
                },
                {"table": "raw.{topic}", "commit": SOON, "provenance": True, "tables_max": 2},
            ],
        }
        spec = {"source": source, "dlq": {}}
        self.file.write_text(f"{HEAD}metadata: {{name: shop}}\nspec: {json.dumps(spec)}\n", "utf-8")

    def topic(self, name: str) -> str:
        return f"{self.prefix}.{name}"

    def create(self, *names: str) -> None:
        for name in names:
            self.kafka.create_topic(self.topic(name), partitions=2)

    def produce(self, name: str, ids: range) -> None:
        records = [Record(value=value, partition=number % 2) for number, value in zip(ids, values(ids), strict=True)]
        self.kafka.produce(self.topic(name), records)

    def table(self, name: str) -> TableFiles:
        return TableFiles(self.data_dir, "sales.orders" if name == "orders" else f"raw.{self.prefix}_{name}")

    def count(self, name: str) -> int:
        table = self.table(name)
        if table.snapshot_id() is None:
            return 0
        return int(table.sql("SELECT count(*) FROM t")[0][0])

    def start(self) -> Running:
        return Running(
            [str(CONVEYORD), "run", str(self.file), "--data-dir", str(self.data_dir), "-o", "json"], self.home
        )

    def run(self) -> Ended:
        """Read what is there, to its end."""
        self.write(follow=False)
        return self.start().wait()

    def audited(self, name: str) -> dict[str, Any]:
        table = self.table(name).table
        opened = open_to_read("lake", data_dir=self.data_dir, catalogs={})
        return audit_table(opened.named_table(table), name=table).as_json()

    def fence(self, name: str) -> dict[str, int]:
        return fence_of(self.table(name).static_table().properties, "shop")


def test_each_topic_lands_in_its_table_and_a_second_run_goes_on(tmp_path: Path, cluster: Cluster) -> None:
    shop = Shop(tmp_path, cluster)
    shop.create("orders", "users", "clicks-eu", "empty")
    shop.produce("orders", range(100))
    shop.produce("users", range(1000, 1050))
    shop.produce("clicks-eu", range(2000, 2007))
    summary = shop.run().succeeded()
    assert (summary["rows_in"], summary["rows_out"], summary["filtered"]) == (157, 147, 10)
    shop.produce("users", range(1050, 1060))
    assert shop.run().succeeded()["rows_in"] == 10
    shop.table("orders").holds([number for number in range(100) if number % 10])
    shop.table("users").holds(range(1000, 1060))
    shop.table("clicks_eu").holds(range(2000, 2007))
    assert shop.fence("orders") == {f"{shop.topic('orders')}[0]": 50, f"{shop.topic('orders')}[1]": 50}
    assert shop.fence("users") == {f"{shop.topic('users')}[0]": 30, f"{shop.topic('users')}[1]": 30}
    for name in ("orders", "users", "clicks_eu"):
        assert shop.audited(name)["ok"]
    assert shop.audited("users")["basis"] == "provenance"


def test_a_topic_that_is_created_while_the_pipeline_runs_gets_its_table(tmp_path: Path, cluster: Cluster) -> None:
    shop = Shop(tmp_path, cluster)
    shop.create("orders", "users")
    shop.produce("users", range(20))
    running = shop.start()
    try:
        assert running.until(lambda: shop.count("users") == 20), running.wait().err
        shop.create("new")
        shop.produce("new", range(30))
        assert running.until(lambda: shop.count("new") == 30), running.wait().err
        running.send(signal.SIGTERM)
        running.wait().orderly(0)
    except BaseException:
        running.killed_after(0)
        raise
    shop.table("new").holds(range(30))
    shop.table("users").holds(range(20))


@pytest.mark.check
def test_killed_runs_over_many_topics_leave_every_table_whole(tmp_path: Path, broker: Broker) -> None:
    """More topics than tables may be open, records while it runs, and a SIGKILL every now and then."""
    shop, names = Shop(tmp_path, broker), ["orders", "a", "b", "c", "d"]
    shop.create(*names)
    done = 0
    for seconds in (1.0, 1.5, 2.0, 2.5):
        for name in names:
            shop.produce(name, range(done, done + 500))
        done += 500
        shop.start().killed_after(seconds)
    shop.run().succeeded()
    for name in names:
        shop.table(name).holds([number for number in range(done) if name != "orders" or number % 10])
        assert shop.audited(name)["ok"]
