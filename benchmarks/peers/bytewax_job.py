"""CSV to Parquet by bytewax: its CSV source, a filter and a map over dictionaries, pyarrow writing what comes out.

bytewax has no sink for Parquet; this one makes row groups as large as conveyord's batches.

    python bytewax_job.py SOURCE.csv TARGET.parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

import bytewax.operators as op
import pyarrow as pa
import pyarrow.parquet as pq
from bytewax.connectors.files import CSVSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

GROUP_ROWS = 65_536
READ = pa.schema(
    [
        ("id", pa.int64()),
        ("at", pa.string()),
        ("user", pa.string()),
        ("country", pa.string()),
        ("price", pa.float64()),
        ("qty", pa.int64()),
        ("status", pa.string()),
        ("total", pa.float64()),
    ]
)
INSTANT = pa.timestamp("us", "UTC")


def typed(row: dict[str, str]) -> dict[str, object]:
    price, qty = float(row["price"]), int(row["qty"])
    return {**row, "id": int(row["id"]), "price": price, "qty": qty, "total": price * qty}


class ParquetPartition(StatelessSinkPartition):
    def __init__(self, target: Path) -> None:
        self._rows: list[dict[str, object]] = []
        self._writer = pq.ParquetWriter(target, READ.set(1, pa.field("at", INSTANT)), compression="zstd")

    def write_batch(self, items: list[dict[str, object]]) -> None:
        self._rows += items
        if len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, READ)
        self._writer.write_table(table.set_column(1, "at", table["at"].cast(INSTANT)))
        self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


class ParquetSink(DynamicSink):
    def __init__(self, target: Path) -> None:
        self._target = target

    def build(self, step_id: str, worker_index: int, worker_count: int) -> ParquetPartition:  # noqa: ARG002 - bytewax's
        return ParquetPartition(self._target)


source, target = sys.argv[1:]
flow = Dataflow("trips")
rows = op.input("read", flow, CSVSource(Path(source)))
kept = op.filter("filter", rows, lambda row: int(row["qty"]) >= 5)
op.output("write", op.map("compute", kept, typed), ParquetSink(Path(target)))
run_main(flow)
