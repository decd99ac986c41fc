"""CSV to Parquet by dlt, with dictionaries: a resource that yields pages of rows, its filesystem destination.

python dlt_job.py SOURCE.csv TARGET_DIRECTORY
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import dlt

PAGE_ROWS = 10_000
COLUMNS = {
    "id": {"data_type": "bigint"},
    "at": {"data_type": "timestamp"},
    "price": {"data_type": "double"},
    "qty": {"data_type": "bigint"},
    "total": {"data_type": "double"},
}


def pages(source: Path) -> Iterator[list[dict[str, object]]]:
    page: list[dict[str, object]] = []
    with source.open(newline="") as lines:
        for row in csv.DictReader(lines):
            price, qty = float(row["price"]), int(row["qty"])
            if qty >= 5:
                page.append({**row, "id": int(row["id"]), "price": price, "qty": qty, "total": price * qty})
            if len(page) == PAGE_ROWS:
                yield page
                page = []
    yield page


source, target = (Path(argument).resolve() for argument in sys.argv[1:])
trips = dlt.resource(pages(source), name="trips", columns=COLUMNS)
destination = dlt.destinations.filesystem(target.as_uri())
pipeline = dlt.pipeline("trips", pipelines_dir=str(target / "state"), destination=destination, dataset_name="bench")
pipeline.run(trips, loader_file_format="parquet")
