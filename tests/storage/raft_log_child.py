"""Lives with a log until it is killed, or until the power is cut. Run by test_raft_log_power.py.

    python raft_log_child.py DIRECTORY SEED [MOUNT SECONDS [careless]]

Prints a line after the log is loaded, and one after each step that is acknowledged. `careless` leaves out the syncs.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from random import Random

from conveyord.storage.raft_log import log as raft_log
from tests.storage.power_cut_child import cut
from tests.storage.raft_log_rig import EVERYTHING, contents, model_of, next_step, opened


def main() -> None:
    directory, seed, *power = sys.argv[1:]
    raft_log.CHECKPOINT_PAGES = 50
    log = opened(Path(directory))
    model = model_of(contents(log.load(0, window_bytes=EVERYTHING)))
    if power[2:]:
        log._connection.execute("PRAGMA synchronous = OFF")
    print("loaded", flush=True)
    if power:
        threading.Timer(float(power[1]), cut, [power[0]]).start()
    random = Random(seed)
    while True:
        next_step(random, model)(log)
        print("acknowledged", flush=True)


if __name__ == "__main__":
    main()
