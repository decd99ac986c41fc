"""Why nobody leads, as one node sees it: a verdict, what it rests on, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from conveyord.core.raft.state import Role
from conveyord.core.raft.types import NodeId
from conveyord.runtime.raft.driver import Standing

SEEKING, DRAINING = "seeking", "draining"
WELL = "ok"


class Told(NamedTuple):
    """What another voter says of itself. raft, leader, disk: as `messages.Status` has them."""

    raft: str
    term: int
    leader: str
    disk: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node knows. voters: itself included, if it votes. addresses: for RPC, as far as known.

    asked: what each other voter said just now, or why it said nothing.
    """

    node: NodeId
    phase: str
    waiting: str
    standing: Standing | None
    disk: str
    voters: frozenset[NodeId] = frozenset()
    addresses: Mapping[NodeId, str] = field(default_factory=dict)
    asked: Mapping[NodeId, Told | str] = field(default_factory=dict)

    @property
    def reached(self) -> dict[NodeId, Told]:
        """The voters that answered."""
        return {node: told for node, told in sorted(self.asked.items()) if isinstance(told, Told)}

    @property
    def silent(self) -> dict[NodeId, str]:
        """The voters that did not, and why."""
        return {node: told for node, told in sorted(self.asked.items()) if isinstance(told, str)}

    @property
    def quorum(self) -> int:
        """How many voters have to agree."""
        return len(self.voters) // 2 + 1

    def named(self, node: NodeId) -> str:
        """A node with its address."""
        address = self.addresses.get(node)
        return f"{node} ({address})" if address else node


@dataclass(frozen=True, slots=True)
class Verdict:
    """As `messages.Diagnosis` has it."""

    sentence: str
    findings: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()


def diagnosed(seen: Seen) -> Verdict:
    """What is the matter; the first of these that holds."""
    standing = seen.standing
    if seen.phase == SEEKING or standing is None:
        return Verdict(
            f"node {seen.node} is in no cluster yet: {seen.waiting or 'it has not heard of one'}",
            remedies=(
                "start as many nodes as `expect` of [cluster] says, with addresses in `join` that reach each other",
                "or add this node to a cluster from one of its members: conveyorctl members add ADDRESS",
            ),
        )
    if standing.leader is not None:
        who = "this node leads" if standing.role is Role.LEADER else f"node {seen.named(standing.leader)} leads"
        return Verdict(f"nothing is wrong: {who} in term {standing.term}", _findings(seen))
    elsewhere = _leader_elsewhere(seen)
    if seen.node not in seen.voters:
        return elsewhere or _not_a_voter(seen)
    if 1 + len(seen.reached) < seen.quorum:
        return _no_majority(seen)
    if elsewhere is not None:
        return elsewhere
    return _sick_disks(seen) or Verdict(
        f"an election is going on: {1 + len(seen.reached)} of {len(seen.voters)} voters are reached, enough to elect a "
        "leader",
        _findings(seen),
        ("ask again in a few seconds; if it stays so, look whether the nodes reach each other both ways",),
    )


def _no_majority(seen: Seen) -> Verdict:
    up = 1 + len(seen.reached)
    silent = ", ".join(seen.named(node) for node in seen.silent)
    return Verdict(
        f"a majority of the voters is not reached: {up} of {len(seen.voters)}, and {seen.quorum} are needed; "
        f"not reached: {silent}",
        _findings(seen),
        (
            f"start {silent}, or mend the network to them",
            "if they are lost for good: conveyorctl raft recover, on the node with the newest state (docs/backup.md)",
        ),
    )


def _not_a_voter(seen: Seen) -> Verdict:
    if not seen.voters:
        return Verdict(
            f"node {seen.node} does not know yet who votes",
            _findings(seen),
            ("wait until a member has told it; if it stays so, look whether the others reach its RPC address",),
        )
    reached = f"{len(seen.reached)} of the {len(seen.voters)} voters are reached"
    return Verdict(
        f"node {seen.node} does not vote, and hears no leader; {reached}",
        _findings(seen),
        (f"ask one of the voters instead: {', '.join(seen.named(node) for node in sorted(seen.voters))}",),
    )


def _leader_elsewhere(seen: Seen) -> Verdict | None:
    """Another voter hears a leader that this node does not hear."""
    for node, told in seen.reached.items():
        if told.leader and told.leader != seen.node:
            return Verdict(
                f"node {seen.named(told.leader)} leads in term {told.term}, says {node}, but does not reach this node",
                _findings(seen),
                (f"look whether {seen.named(told.leader)} reaches {seen.named(seen.node)}: network, certificates",),
            )
    return None


def _sick_disks(seen: Seen) -> Verdict | None:
    """Nodes whose disk is stalled or full lead nothing."""
    sick = {seen.node: seen.disk} | {node: told.disk for node, told in seen.reached.items()}
    sick = {node: disk for node, disk in sorted(sick.items()) if disk != WELL}
    if len(sick) < 1 + len(seen.reached):
        return None
    named = "; ".join(f"{seen.named(node)}: {disk}" for node, disk in sick.items())
    return Verdict(
        f"no voter that is reached may lead, as its disk takes no writes: {named}",
        _findings(seen),
        ("free space, or mend the disk: a node goes on by itself once its writes succeed",),
    )


def _findings(seen: Seen) -> tuple[str, ...]:
    standing = seen.standing
    assert standing is not None
    where = f"is {standing.role.value} in term {standing.term}, has committed up to {standing.commit}"
    found = [f"this node, {seen.named(seen.node)}, {where} and applied up to {standing.applied}"]
    if seen.phase == DRAINING:
        found.append("this node is draining: it is about to stop")
    if seen.waiting:
        found.append(seen.waiting)
    if seen.disk != WELL:
        found.append(f"the disk of this node: {seen.disk}")
    for node, told in seen.reached.items():
        leader = f"hears {told.leader}" if told.leader else "hears no leader"
        disk = "" if told.disk == WELL else f"; its disk: {told.disk}"
        found.append(f"voter {seen.named(node)} is reached: {told.raft} in term {told.term}, {leader}{disk}")
    found += [f"voter {seen.named(node)} is not reached: {reason}" for node, reason in seen.silent.items()]
    return tuple(found)
