"""`conveyord.core.raft.progress` where the network keeps no order: found by the simulation (seed 17 of its day)."""

from __future__ import annotations

from random import Random

import pytest

from conveyord.core.raft.messages import Receive
from conveyord.core.raft.types import Options
from tests.unit.raft.rig import Cluster

COMMANDS = 40


@pytest.mark.parametrize("seed", range(5))
def test_messages_out_of_order_are_not_answered_by_ever_more_of_them(seed: int) -> None:
    """Of forty appends that arrive in any order, most are rejected. If every reply to one that fits, old or new, had
    the leader send all of them again, there would be no end to it.
    """
    random = Random(seed)
    cluster = Cluster("ab", options=Options(append_bytes=1, inflight_messages=64))
    cluster.elect("a")
    cluster.propose("a", *[b"x"] * COMMANDS)
    cluster.sync("a")
    delivered = 0
    while cluster.mail:
        message = cluster.mail.pop(random.randrange(len(cluster.mail)))
        cluster.step(message.to, Receive(message))
        cluster.sync(message.to)
        delivered += 1
        assert delivered < 2 * COMMANDS * COMMANDS, len(cluster.mail)
    assert cluster["b"].node.state.log.last == cluster["a"].node.state.log.last
