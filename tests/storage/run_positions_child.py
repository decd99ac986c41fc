"""Stores positions until it is killed, or until the power is cut. Run by test_run_positions.py.

    python run_positions_child.py DATA_DIR [MOUNT SECONDS [careless]]

Prints each offset once it is stored. Both partitions and the state move together. `careless` leaves out the syncs.
"""

from __future__ import annotations

import sys
import threading
from itertools import count
from pathlib import Path

from conveyord.core.flow.positions import Partition, Span
from conveyord.storage.run_positions import RunPositions, SinkKey
from tests.storage.power_cut_child import cut

KEY = SinkKey("default/p", "out", "https://example.org/")
PARTITIONS = (Partition("in", "a"), Partition("in", "b"))


def main() -> None:
    data_dir, *power = sys.argv[1:]
    positions = RunPositions(Path(data_dir))
    if power[2:]:
        positions._connection.execute("PRAGMA synchronous = OFF")
    held = positions.load(KEY)
    start = 0 if held is None else held[PARTITIONS[0]].offset
    if power:
        threading.Timer(float(power[1]), cut, [power[0]]).start()
    for at in count(start):
        spans = [Span(partition, at, at + 1, mark=f"mark {at + 1}") for partition in PARTITIONS]
        positions.store(KEY, spans, {"in": f"state {at + 1}"})
        print(at + 1, flush=True)


if __name__ == "__main__":
    main()
