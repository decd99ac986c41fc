"""Commits batches to a lake below a mounted ext4 until the power is cut. Run by test_commit_power_cut.py.

    python power_cut_child.py MOUNT DATA_DIR FILE_IO CUT

CUT is a number of seconds, or `batch:N` to cut at once when N batches are acknowledged, or
`undurable-catalog:N` for the same with SQLite's own settings.

Prints one line per acknowledged batch. The cut is EXT4_IOC_SHUTDOWN without flushing the journal: what
was not synced is gone, as if the plug had been pulled.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import threading
from pathlib import Path

EXT4_IOC_SHUTDOWN = 0x8004587D
NOLOGFLUSH = 2


def cut(mount: str) -> None:
    descriptor = os.open(mount, os.O_RDONLY)
    fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
    os._exit(0)


def main() -> None:
    mount, data_dir, file_io, when = sys.argv[1:]
    mode, _, number = when.rpartition(":")
    from conveyord.storage.lake import catalog

    catalog.FILE_IO = file_io
    if mode == "undurable-catalog":
        catalog._durable = lambda opened: opened
    from tests.storage.lake_rig import Run

    run = Run(Path(data_dir)).open()
    print("acknowledged", run.committer.fence.n, flush=True)
    if not mode:
        threading.Timer(float(number), cut, [mount]).start()
    while True:
        done = run.commit_next()
        print("acknowledged", done.n, flush=True)
        if mode and done.n >= int(number):
            cut(mount)


if __name__ == "__main__":
    main()
