"""Appends to a journal until it is killed, or until the power is cut. Run by test_push_journal.py.

    python push_journal_child.py PATH [MOUNT SECONDS [careless]]

Prints the end of the journal after each transaction. `careless` leaves out the syncs.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from conveyord.storage.push_journal import Push, PushJournal, Retention
from tests.storage.power_cut_child import cut

LIMIT = 2**20
LONG = Retention(seconds=3600, keys_max=1000)


def push(number: int, *, records: int = 1, key: bytes | None = None) -> Push:
    body = b"\n".join(b'{"n":%d}' % number for _ in range(records))
    return Push(key or b"k%d" % number, b"d%d" % number, records, body)


def main() -> None:
    path, *power = sys.argv[1:]
    journal = PushJournal(Path(path))
    if power[2:]:
        journal._connection.execute("PRAGMA synchronous = OFF")
    if power:
        threading.Timer(float(power[1]), cut, [power[0]]).start()
    while True:
        at = journal.next
        journal.append([push(at), push(at + 1)], now=0, bytes_max=LIMIT)
        print(at + 2, flush=True)
        if at % 14 == 0:
            journal.settle(at, LONG, now=0)


if __name__ == "__main__":
    main()
