"""Commits to a directory below a mounted ext4 until the power is cut. Run by test_directory_power_cut.py.

    python directory_power_cut_child.py MOUNT ROOT KIND CUT

CUT is a number of seconds after the first commit, or `commit:N` to cut at once when N commits are acknowledged,
or `undurable:N` for the same without any sync. Prints one line per acknowledged commit.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from tests.storage.directory_rig import ROWS, Run
from tests.storage.power_cut_child import cut


def main() -> None:
    mount, root, kind, when = sys.argv[1:]
    mode, _, number = when.rpartition(":")
    if mode == "undurable":
        os.fsync = lambda _: None
    run = Run(Path(root), kind).open()
    print("acknowledged", run.next_offset // ROWS, flush=True)
    while True:
        done = run.commit_next()
        print("acknowledged", done, flush=True)
        if mode and done >= int(number):
            cut(mount)
        if not mode and threading.active_count() == 1:  # a busy machine may take seconds to load everything
            threading.Timer(float(number), cut, [mount]).start()


if __name__ == "__main__":
    main()
