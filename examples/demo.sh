#!/bin/sh
# What `make demo` does: the main job on a real file, with no server at all.
set -eu
cd "$(dirname "$0")/.."
conveyord=${CONVEYORD:-.venv/bin/conveyord}
data=${DEMO_DATA:-demo-data}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Nested GeoJSON -> flatten -> SQL -> an Iceberg table, partitioned by day"
"$conveyord" run examples/earthquakes.yaml --data-dir "$data"

say "2. Ask the table"
"$conveyord" query --data-dir "$data" \
  "SELECT day, count(*) AS quakes, max(mag) AS strongest FROM seismic.quakes GROUP BY day ORDER BY day"

say "3. Every record exactly once? Run it again, then count"
"$conveyord" run examples/earthquakes.yaml --data-dir "$data"
"$conveyord" audit --data-dir "$data" seismic.quakes

say "Next"
cat <<TXT
The table is plain Apache Iceberg, under $data/warehouse (catalog: $data/catalog.db).
Any Iceberg reader opens it: DuckDB, Polars, Spark, Trino.

  kill -9 a run and start it again:  nothing is lost or doubled
  edit examples/earthquakes.yaml     and make a mistake: the message shows where
  $conveyord run examples/birdstrikes.yaml --data-dir $data      CSV, types inferred
  $conveyord query --data-dir $data "SELECT * FROM seismic.quakes ORDER BY mag DESC LIMIT 5"
TXT
