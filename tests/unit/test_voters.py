"""Who is to vote: each rule, and that no step gives the quorum away."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.planning.voters import Peer, Plan, Sight, keeps_quorum, plan
from conveyord.core.raft.membership import Change, Membership, Standing
from conveyord.core.state.rows import MemberRow

HERE, AWAY, FAR = Peer(0.2, 0.2, True), Peer(9.0, 9.0, True), Peer(0.2, 0.2, False)


def row(node: str, state: str = "ready", roles: str = "router") -> MemberRow:
    return MemberRow(node, f"{node}:1", f"{node}:2", roles, "1", 1, 1, 1, state, 0, 0, 5)


def sight(
    voters: str,
    learners: str = "",
    *,
    rows: Mapping[str, MemberRow] | None = None,
    peers: Mapping[str, Peer] | None = None,
    target: int = 3,
    dead: int = 0,
    outgoing: str = "",
) -> Sight:
    everyone = [*voters, *learners]
    return Sight(
        voters[0],
        Membership(frozenset(voters), frozenset(learners), frozenset(outgoing)),
        {node: row(node) for node in everyone} | dict(rows or {}),
        dict.fromkeys(everyone[1:], HERE) | dict(peers or {}),
        target,
        dead,
    )


def change(node: str, standing: Standing) -> tuple[Change, ...]:
    return (Change(node, standing),)


VOTER, LEARNER, GONE = Standing.VOTER, Standing.LEARNER, Standing.GONE


@pytest.mark.parametrize(
    ("seen", "changes"),
    [
        (sight("abc"), ()),
        (sight("abc", "d"), ()),
        (sight("abc", rows={"d": row("d")}), change("d", LEARNER)),
        (sight("abc", rows={"d": row("d", roles="builder")}), ()),
        (sight("abc", rows={"d": row("d", "down")}), ()),
        (sight("abc", rows={"d": row("d", "left")}), ()),
        (sight("a", "b"), change("b", VOTER)),
        (sight("a", "b", peers={"b": FAR}), ()),
        (sight("a", "b", peers={"b": AWAY}), ()),
        (sight("a", "b", rows={"b": row("b", "joining")}), ()),
        (sight("a", "b", rows={"b": row("b", "draining")}), ()),
        (sight("a", "b", rows={"b": row("b", roles="sidecar")}), ()),
        (sight("ab", "c", peers={"b": AWAY}), ()),
        (sight("a", "b", target=1), ()),
        (sight("abc", target=1), change("c", LEARNER)),
        (sight("abc", target=1, peers={"b": AWAY}), change("b", LEARNER)),
        (sight("abc", rows={"b": row("b", roles="builder,sidecar")}), change("b", LEARNER)),
        (sight("abc", rows={"a": row("a", roles="sidecar")}), ()),
        (sight("abc", rows={"b": row("b", "left")}), change("b", GONE)),
        (sight("abc", rows={"b": row("b", "left")}, peers={"c": AWAY}), ()),
        (sight("abc", rows={"a": row("a", "left")}), ()),
        (sight("abc", rows={"b": row("b", "down")}, peers={"b": Peer(99, 99, True)}), ()),
        (sight("abc", rows={"b": row("b", "down")}, peers={"b": Peer(30, 30, True)}, dead=60), ()),
        (sight("ab", "c", outgoing="a"), ()),
    ],
)
def test_the_next_change(seen: Sight, changes: tuple[Change, ...]) -> None:
    found = plan(seen)
    assert found.changes == changes
    assert bool(found.why) == bool(changes)


def test_who_is_not_heard_for_long_is_down_once() -> None:
    assert plan(sight("abc", peers={"c": AWAY})).down == ("c",)
    assert plan(sight("abc", peers={"c": AWAY}, rows={"c": row("c", "down")})) == Plan()


def test_a_dead_server_is_told_of_as_gone() -> None:
    seen = sight("abc", rows={"b": row("b", "down")}, peers={"b": Peer(99, 99, True)}, dead=60)
    found = plan(seen)
    assert (found.left, found.changes) == (("b",), ())
    assert "b was down for 99 s" in found.why


NODES = "abcdefg"
peers = st.builds(Peer, st.sampled_from([0.1, 2.0, 4.0, 90.0]), st.sampled_from([0.1, 90.0]), st.booleans())
states = st.sampled_from(["joining", "ready", "draining", "down", "left"])
roles = st.sampled_from(["router", "builder", "router,sidecar", "sidecar"])


@given(st.data())
def test_no_step_gives_away_a_quorum_or_the_leader(data: st.DataObject) -> None:
    voters = data.draw(st.sets(st.sampled_from(NODES), min_size=1))
    learners = data.draw(st.sets(st.sampled_from(NODES))) - voters
    rows = {node: row(node, data.draw(states), data.draw(roles)) for node in NODES if data.draw(st.booleans())}
    leader = min(voters)
    heard = {node: data.draw(peers) for node in voters | learners if node != leader}
    members = Membership(frozenset(voters), frozenset(learners))
    seen = Sight(
        leader, members, rows, heard, data.draw(st.sampled_from([1, 3, 5])), data.draw(st.sampled_from([0, 60]))
    )
    found = plan(seen)
    if not found.changes:
        return
    after = members.changed(found.changes)
    assert leader in after.voters
    if after.voters != members.voters:
        assert keeps_quorum(seen, after.voters)
        assert len(after.voters ^ members.voters) == 1
