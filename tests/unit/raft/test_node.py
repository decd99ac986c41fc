"""`conveyord.core.raft.node`: what a node refuses to start on, and that it depends on nothing but its events."""

from __future__ import annotations

import pytest

from conveyord.core.errors import Corrupt
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Persisted
from conveyord.core.raft.node import Loaded, RaftNode
from conveyord.core.raft.types import HardState, Options
from tests.unit.raft.rig import Cluster, T, entries_of

ABC = Membership(frozenset("abc"))


@pytest.mark.parametrize(("commit", "applied"), [(0, 5), (5, 0)])
def test_a_node_whose_state_is_ahead_of_its_log_does_not_start(commit: int, applied: int) -> None:
    """It would acknowledge what it has not: its log was lost or replaced by an older one."""
    found = Loaded(HardState(1, None, commit), membership=ABC, entries=entries_of([1, 1, 1]), applied=applied)
    with pytest.raises(Corrupt, match="node b has applied or committed entry 5, and its log ends at 3"):
        RaftNode("b", found, Options(), random=lambda: 0.5, now=0.0)


def test_a_node_alone_commits_nothing_before_it_is_on_its_disk() -> None:
    """etcd #14370: a single node acknowledged and applied before the log was synced."""
    cluster = Cluster("a")
    cluster.elect("a")
    cluster.propose("a", b"x")
    assert (cluster["a"].node.state.commit, cluster.commands()["a"]) == (1, [])
    cluster.step("a", Persisted(cluster["a"].writes[-1].token))
    assert (cluster["a"].node.state.commit, cluster.commands()["a"]) == (2, [b"x"])


def test_time_never_goes_back() -> None:
    cluster = Cluster()
    cluster.wait(5 * T)
    deadline = cluster["a"].node.deadline
    cluster["a"].node.step(Persisted(0), now=0.0)
    assert cluster["a"].node.deadline == deadline


def test_the_same_events_lead_to_the_same_results() -> None:
    def lived() -> list[object]:
        cluster = Cluster("abcde")
        cluster.wait(2 * T)
        cluster.propose(cluster.leader() or "a", b"x", b"y")
        cluster.wait(T, settle=False)
        return [cluster.mail, [(rig.node.state.hard_state, rig.applied) for rig in cluster.rigs.values()]]

    assert lived() == lived()
