"""Appends, reads, settles and discards for ever until it is killed or the power is cut.

    python -m tests.storage.spill_child DIRECTORY LIFE [MOUNT SECONDS]

With MOUNT, the power of that file system is cut after SECONDS. Every operation is announced on stdout before
it begins (`appending NUMBER VALUE`, `settling NUMBER`, `discarding NUMBER`) and when it is done (`appended`,
`settled`, `discarded`), unbuffered: what was said is known of a process that is gone. Values never come again.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
from pathlib import Path

from conveyord.storage.disk import truncate
from conveyord.storage.spill.queue import SpillQueue
from tests.storage.power_cut_child import cut
from tests.storage.spill_rig import batch, meta, opened, segments, value_of

VALUES_PER_LIFE = 1_000_000


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def append(queue: SpillQueue, value: int, size: int) -> None:
    number = queue.last + 1
    say("appending", number, value)
    assert queue.append(meta(value), batch(value, size=size)) == number
    say("appended", number, value)


def cut_late(mount_point: str) -> None:
    """Cut the power just after the kernel has written everything back: else it is luck whether anything is there."""
    descriptor = os.open(mount_point, os.O_RDONLY)
    assert ctypes.CDLL(None, use_errno=True).syncfs(descriptor) == 0
    cut(mount_point)


def main() -> None:
    directory, life, *power = sys.argv[1:]
    rng, value = random.Random(int(life)), int(life) * VALUES_PER_LIFE
    queue = opened(Path(directory))
    say("opened", queue.settled, queue.last, len(queue.recovered.quarantined))
    while (read := queue.read()) is not None:
        say("recovered", read[0], value_of(read))
    say("working")
    if power:
        threading.Timer(float(power[1]), cut_late if int(life) % 3 == 2 else cut, [power[0]]).start()
    held: dict[int, int] = {}
    while True:
        for _ in range(rng.randrange(1, 8)):
            append(queue, value, rng.choice([0, 100, 2_000]))
            held[queue.last] = value
            value += 1
        for _ in range(rng.randrange(8)):
            if (read := queue.read()) is not None:
                assert value_of(read) == held[read[0]]
        number = rng.randint(queue.settled, queue.last)
        if rng.random() < 0.2:
            say("discarding", number)
            queue.discard_after(number)
            say("discarded", number)
        else:
            say("settling", number)
            queue.settle(number)
            say("settled", number)
        if rng.random() < 0.2 and (paths := segments(Path(directory))):
            # Parts of the queue reach the disk, and others do not, as when the kernel writes back.
            path = rng.choice(paths)
            truncate(path, path.stat().st_size)


if __name__ == "__main__":
    main()
