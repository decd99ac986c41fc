"""CSV to CSV by pathway: a static read, a filter and a computed column. Its Parquet-writing sinks want a licence,
and it has no column `id`, which is what it calls its own keys: both are in its favour.

    python pathway_job.py SOURCE.csv TARGET.csv
"""

from __future__ import annotations

import sys

import pathway as pw


class Trip(pw.Schema):
    at: str
    user: str
    country: str
    price: float
    qty: int
    status: str


source, target = sys.argv[1:]
trips = pw.io.csv.read(source, schema=Trip, mode="static")
kept = trips.filter(pw.this.qty >= 5).with_columns(total=pw.this.price * pw.this.qty)
pw.io.csv.write(kept, target)
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
