"""A log with every kind of command, from a seed; run as a program, it prints what a state is that applied it.

python -m tests.storage.state.script DIRECTORY SEED COUNT BATCH
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.types import Kind
from conveyord.core.state.commands import (
    ClusterForm,
    ClusterRestored,
    Command,
    ConfigDelete,
    ConfigPut,
    MemberForget,
    MemberState,
    ProtocolRaise,
    SessionOpen,
    SettingChange,
    TokenDelete,
    TokenRevoke,
)
from conveyord.core.state.settings import SETTINGS
from tests.storage.state.rig import SESSIONS_MAX, WINDOW, Log, Node
from tests.unit.state.rig import join, token


def any_command(random: Random, index: int) -> Command:
    key, node = f"k/{random.randint(0, 20)}", f"n{random.randint(0, 4)}"
    expect = random.choice([None, None, 0, random.randint(1, index)])
    commands = [
        ConfigPut(key, random.randbytes(random.randint(0, 300)), expect),
        ConfigPut(key, b"again"),
        ConfigDelete(key, expect),
        join(node, random.randint(1, 3)),
        MemberState(node, random.randint(1, 3), random.choice(["ready", "draining", "down", "left"]), expect),
        MemberForget(node),
        token(
            f"t{random.randint(0, 9)}", random.choice(["viewer", "admin"]), expires_at_ms=random.choice([None, 10**6])
        ),
        TokenRevoke(f"t{random.randint(0, 9)}", random.random() < 0.3),
        TokenDelete(f"t{random.randint(0, 9)}"),
        SettingChange(random.choice(list(SETTINGS)), random.choice([3, 20, 60, 1 << 20])),
        ConfigPut("no key", b""),
        ClusterForm(random.choice(["c1", "c2"]), 1),
        ProtocolRaise(random.randint(0, 2)),
        ClusterRestored(f"h{index}"),
    ]
    return random.choice(commands)


def make_log(seed: int, count: int) -> Log:
    """The log that follows from a seed."""
    random, log, opened = Random(seed), Log(), list[int]()
    while len(log.entries) < count:
        draw = random.random()
        if draw < 0.02:
            log.add(Kind.NOOP, b"")
        elif draw < 0.04:
            nodes = random.sample("abcdefgh", 5)
            log.membership(Membership(frozenset(nodes[:3]), frozenset(nodes[3:])))
        elif draw < 0.06 or not opened:
            opened.append(log.command(SessionOpen()).index)
        elif draw < 0.12:
            keys = random.sample(range(21), random.randint(2, 5))
            about = [random.choice([ConfigPut(f"k/{key}", b"bundled"), ConfigDelete(f"k/{key}")]) for key in keys]
            log.bundle(*((one, random.choice(opened[-4:]), random.randint(1, len(log.entries))) for one in about))
        else:
            command = any_command(random, len(log.entries))
            session = random.choice([0, *opened[-SESSIONS_MAX - 1 :], opened[-1], opened[-1]])
            number = len(log.entries) - session + random.choice([0, 0, 0, -1])
            log.command(command, session, max(number, 1), max(number - random.randint(0, 3), 1))
    return log


def state_of(log: Log, directory: Path, batch: int) -> str:
    """Digest and replies, after the log was applied in batches of that size."""
    node = Node(directory, sessions_max=SESSIONS_MAX, window=WINDOW)
    replies = node.follow(log, batch=batch)
    digest = node.store.state_digest()
    node.store.close()
    return f"{digest.hex()} {replies}"


if __name__ == "__main__":
    print(state_of(make_log(int(sys.argv[2]), int(sys.argv[3])), Path(sys.argv[1]), int(sys.argv[4])))
