"""Peak memory of the main job on 2 GB of JSON lines, on all cores: `python -m benchmarks.memory --json out.json`."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.jsonl_to_iceberg import conveyord
from benchmarks.records import make

RECORDS = 9_000_000  # a little over 2 GB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "conveyord-bench")
    arguments = parser.parse_args()
    path = make(arguments.work / f"trips-{arguments.records}.jsonl", arguments.records)
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    sample = conveyord(path, arguments.work, cores=cores)
    result = {"bytes": path.stat().st_size, "peak_rss_mib": round(sample.peak_rss_mib), "cores": cores}
    path.unlink()
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
