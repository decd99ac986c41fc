"""How soon a node is ready, and how much memory it takes when nobody asks for anything.

Ready: from the start of the process until its cluster has answered a read; of a new data directory, and of one that has
a cluster. Beside it the start of a bare Python that imports trio, in the same round: what no daemon of ours can beat.

    python -m benchmarks.daemon_start [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONVEYORD = Path(sys.executable).with_name("conveyord")
BARE = [sys.executable, "-c", "import trio"]
SETTLE_SECONDS = 2.0  # from ready on, before memory is looked at
READY_SECONDS_MAX = 60.0
DEV_SECONDS_WANTED, DEV_MEGABYTES_WANTED, ROUTER_MEGABYTES_WANTED = 2.0, 200.0, 110.0


def started(home: Path, verb: str, ready: str) -> tuple[float, float]:
    """Seconds until `ready` is said, and megabytes of memory some time after that."""
    command = [str(CONVEYORD), verb, "--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    said = home / "said"
    with said.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=home, stdout=output, stderr=output)
        try:
            while ready not in said.read_text(encoding="utf-8"):
                if process.poll() is not None or time.perf_counter() - began > READY_SECONDS_MAX:
                    raise RuntimeError(f"it is not ready:\n{said.read_text(encoding='utf-8')}")
                time.sleep(0.005)
            seconds = time.perf_counter() - began
            time.sleep(SETTLE_SECONDS)
            resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert resident is not None
    return seconds, int(resident[1]) * 1024 / 1e6


def bare() -> float:
    began = time.perf_counter()
    subprocess.run(BARE, check=True)
    return time.perf_counter() - began


def measured(rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(rounds):
        note("bare_seconds", bare())
        with tempfile.TemporaryDirectory() as directory:
            for which in ("dev_new", "dev_again"):
                seconds, megabytes = started(Path(directory), "dev", "Ctrl-C stops it")
                note(f"{which}_seconds", seconds)
                note("dev_megabytes", megabytes)
        with tempfile.TemporaryDirectory() as directory:
            seconds, megabytes = started(Path(directory), "start", "the cluster answers")
            note("router_seconds", seconds)
            note("router_megabytes", megabytes)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    result = measured(arguments.rounds)
    for name, value in result.items():
        print(f"{name:>18} {value:8.2f}")
    print(
        f"wanted: dev ready within {DEV_SECONDS_WANTED:g} s, at most {DEV_MEGABYTES_WANTED:g} MB idle; a router alone "
        f"{ROUTER_MEGABYTES_WANTED:g} MB"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rounds": arguments.rounds, **result}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
