"""Puts letters until it is killed, or until the power is cut. Run by the crash and power-cut tests.

    python dead_letters_child.py DATA_DIR [MOUNT SECONDS [segment-sync | index-sync]]

Prints `offset version` once a letter is acknowledged. A letter is its version, repeated. The last argument
names a sync to leave out.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from itertools import count
from pathlib import Path

from conveyord.storage.dead_letters import index
from conveyord.storage.dead_letters.letters import Selection
from tests.storage.dead_letters_rig import PIPELINE, letter, opened
from tests.storage.power_cut_child import cut

RECORDS = 40
PASSING = 1000  # a record that comes and is purged again


class Careless(sqlite3.Connection):
    """Ignores the wish for durable commits."""

    def execute(self, query: str, *parameters: object) -> sqlite3.Cursor:
        return super().execute(query.replace("synchronous = FULL", "synchronous = OFF"), *parameters)


def leave_out(sync: str) -> None:
    if sync == "segment-sync":
        os.fsync = lambda _: None
    else:
        connect = sqlite3.connect
        index.sqlite3.connect = lambda *arguments, **more: connect(*arguments, **more, factory=Careless)


def main() -> None:
    data_dir, *power = sys.argv[1:]
    if power[2:]:
        leave_out(power[2])
    with opened(Path(data_dir), budget_bytes=16 * 65_536) as store:
        before = max((int(stored.letter.raw[:10]) for stored in store.select() if stored.letter.raw), default=0)
        if power:
            threading.Timer(float(power[1]), cut, [power[0]]).start()
        for version in count(before + 1):
            offsets = [version * 7 % RECORDS, version * 11 % RECORDS, PASSING]
            put = [letter(offset, raw=b"%010d" % version * (version % 700 + 1)) for offset in offsets]
            store.put(put, version)
            for offset in offsets[:2]:
                print(offset, version, flush=True)
            if version % 5 == 0:
                passing = [stored.id for stored in store.select() if stored.letter.key.offset == PASSING]
                assert store.purge(Selection(pipeline=PIPELINE, ids=tuple(passing))) == 1


if __name__ == "__main__":
    main()
