"""How nodes that are in no cluster come to be in one, and in no more than one: decided without I/O.

Each node asks the others that it hears of who they are, decides, does one thing, and asks again. A cluster is founded
on a list of voters, all of whom have promised to be in that one and in no other:

| a node | sees | does |
|---|---|---|
| without a promise | somebody who is in a cluster | joins it |
| | a proposal with itself in it | promises |
| | a proposal without itself | waits until that cluster is there, and joins it |
| | `expect` routers, of which it has the lowest id | proposes a cluster of the `expect` lowest, and promises |
| with a promise | that a voter of it is in that cluster, or all have promised | founds |
| | that a voter has refused the proposal, or is in another cluster | takes the promise back |
| | voters that are free | asks them to promise |

A promise and a refusal are on disk before anybody hears of them, and a refusal is for ever. So a proposal that somebody
took a promise back from was refused by a voter, and can never be whole any more; and one that was found whole stays so:
two clusters that are founded have no voter in common, whatever is lost, late or started again. A voter that is away for
good before its cluster is founded holds the others up: they say so, and an empty data directory frees them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from conveyord.core.raft.types import NodeId

ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A cluster to be. voters: with the addresses at which they are reached."""

    cluster: str
    voters: Mapping[NodeId, str]


@dataclass(frozen=True, slots=True)
class Promises:
    """What a node has bound itself to: at most one proposal. refused: clusters that it is never to be a founder of."""

    kept: Proposal | None = None
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a node says of itself. heard_of: addresses of others.

    expect: how many routers a cluster is founded with; 0 for a node that founds nothing, and waits to be let in.
    """

    node: NodeId
    address: str
    roles: tuple[str, ...]
    expect: int
    cluster: str | None = None
    promises: Promises = field(default_factory=Promises)
    heard_of: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------- what to do


@dataclass(frozen=True, slots=True)
class Join:
    """Ask the node at this address to be let in."""

    address: str


@dataclass(frozen=True, slots=True)
class Propose:
    """Make up a cluster's id, promise it, and say so."""

    voters: Mapping[NodeId, str]


@dataclass(frozen=True, slots=True)
class Promise:
    """Promise this."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask these to promise what this node has promised."""

    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class TakeBack:
    """The promise can never be of use any more."""


@dataclass(frozen=True, slots=True)
class Found:
    """The cluster of the promise is there: be in it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done yet. why: a sentence."""

    why: str


Step = Join | Propose | Promise | Ask | TakeBack | Found | Wait


def promised(now: Promises, proposal: Proposal) -> Promises:
    """What a node is bound to once it was asked to promise `proposal`: to that, or never to be."""
    if now.kept is None and proposal.cluster not in now.refused:
        return Promises(proposal, now.refused)
    if now.kept is not None and now.kept.cluster == proposal.cluster:
        return now
    return Promises(now.kept, now.refused | {proposal.cluster})


def taken_back(now: Promises) -> Promises:
    """What a node is bound to once a promise of it is of no use any more."""
    assert now.kept is not None
    return Promises(None, now.refused | {now.kept.cluster})


def decide(me: Introduction, others: Collection[Introduction], unreached: Collection[str] = ()) -> Step:
    """What a node that is in no cluster does next. others: as they were just now. unreached: addresses, to be told."""
    if me.promises.kept is not None:
        return _keep(me, me.promises.kept, others)
    settled = sorted((other for other in others if other.cluster is not None), key=lambda other: other.node)
    if settled:
        return Join(settled[0].address)
    open_ones = [other.promises.kept for other in others if other.promises.kept is not None]
    for proposal in open_ones:
        if me.node in proposal.voters and proposal.cluster not in me.promises.refused:
            return Promise(proposal)
    if open_ones:
        return Wait(f"a cluster of {_named(open_ones[0].voters)} is being founded; this node joins it then")
    return _gather(me, others, unreached)


def _keep(me: Introduction, proposal: Proposal, others: Collection[Introduction]) -> Step:
    """See a promise through."""
    voters = {other.node: other for other in others if other.node in proposal.voters}
    voters[me.node] = me
    if any(voter.cluster == proposal.cluster for voter in voters.values()):
        return Found()
    if any(voter.cluster is not None or proposal.cluster in voter.promises.refused for voter in voters.values()):
        return TakeBack()
    bound = {node for node, voter in voters.items() if _is_bound(voter, proposal)}
    if bound == proposal.voters.keys():
        return Found()
    if free := sorted(voters.keys() - bound):
        return Ask(tuple(free))
    missing = sorted(proposal.voters.keys() - voters.keys())
    return Wait(
        f"a cluster of {_named(proposal.voters)} is being founded, but {_named(missing)} cannot be reached; start it, "
        "or if it is gone for good, start the others anew on empty data directories"
    )


def _gather(me: Introduction, others: Collection[Introduction], unreached: Collection[str]) -> Step:
    """Nobody has a cluster, nor proposes one."""
    if me.expect == 0:
        return Wait(f"this node founds no cluster, and nobody who is in one lets it in{_away(unreached)}")
    routers = {one.node: one for one in (*others, me) if ROUTER in one.roles and one.expect}
    if wrong := [one for one in routers.values() if one.expect != me.expect]:
        other = min(wrong, key=lambda one: one.node)
        return Wait(f"node {other.node} expects {other.expect} routers, this one {me.expect}; set the same everywhere")
    if len(routers) < me.expect:
        return Wait(f"{len(routers)} of {me.expect} routers are there ({_named(routers)}){_away(unreached)}")
    chosen = sorted(routers)[: me.expect]
    if chosen[0] != me.node:
        return Wait(f"node {chosen[0]} founds a cluster of {_named(chosen)}")
    return Propose({node: routers[node].address for node in chosen})


def _is_bound(voter: Introduction, proposal: Proposal) -> bool:
    kept = voter.promises.kept
    return kept is not None and kept.cluster == proposal.cluster


def _away(unreached: Collection[str]) -> str:
    return f"; not reached: {', '.join(sorted(unreached))}" if unreached else ""


def _named(nodes: Collection[NodeId]) -> str:
    return ", ".join(sorted(nodes))
