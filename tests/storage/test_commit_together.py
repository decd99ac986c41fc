"""Several sinks of one run that write for the first time at the same moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa

from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lake.schemas import create_table

SINKS = 6
ROUNDS = 5


def test_tables_that_are_created_together_share_the_namespace_that_was_missing(data_dir: Path) -> None:
    """Which of them is first is left to chance, so there are several rounds."""
    catalogs = [open_embedded(data_dir) for _ in range(SINKS)]
    for number in range(ROUNDS):
        together = Barrier(SINKS)

        def create(sink: int, number: int = number, together: Barrier = together) -> str:
            name = f"outer{number}.inner.t{sink}"
            together.wait(timeout=60)
            return create_table(catalogs[sink], name, pa.schema([("id", pa.int64())]), [], {}).name()[-1]

        with ThreadPoolExecutor(SINKS) as threads:
            assert list(threads.map(create, range(SINKS))) == [f"t{sink}" for sink in range(SINKS)]
