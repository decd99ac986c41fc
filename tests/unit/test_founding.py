"""How nodes come to be in one cluster: lives with lost messages, stale views, crashes, and late comers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest

from conveyord.core.planning.founding import (
    Ask,
    Found,
    Introduction,
    Join,
    Promise,
    Promises,
    Proposal,
    Propose,
    Step,
    TakeBack,
    Wait,
    decide,
    promised,
    taken_back,
)


def node(name: str, *, expect: int = 3, roles: tuple[str, ...] = ("router",), **more: object) -> Introduction:
    return Introduction(name, f"{name}:7400", roles, expect, **more)  # type: ignore[arg-type]


F = Proposal("f", {"a": "a:7400", "b": "b:7400", "c": "c:7400"})
G = Proposal("g", {"b": "b:7400", "d": "d:7400", "e": "e:7400"})
G_OF_THREE = {name: f"{name}:7400" for name in "bcd"}
KEPT = Promises(F)


@pytest.mark.parametrize(
    ("me", "others", "step"),
    [
        (node("a", expect=1), [], Propose({"a": "a:7400"})),
        (node("a"), [node("b"), node("c")], Propose(F.voters)),
        (node("b"), [node("a", expect=0), node("c"), node("d")], Propose(G_OF_THREE)),
        (node("a", expect=0), [node("b", cluster="x")], Join("b:7400")),
        (node("a"), [node("b"), node("c"), node("d")], Propose(F.voters)),
        (node("b"), [node("a"), node("c")], Wait("node a founds a cluster of a, b, c")),
        (node("a"), [node("b", cluster="x")], Join("b:7400")),
        (node("b"), [node("a", promises=KEPT)], Promise(F)),
        (node("d"), [node("a", promises=KEPT)], Wait("a cluster of a, b, c is being founded; this node joins it then")),
        (node("a", promises=KEPT), [node("b"), node("c", promises=KEPT)], Ask(("b",))),
        (node("a", promises=KEPT), [node("b", promises=KEPT), node("c", promises=KEPT)], Found()),
        (node("a", promises=KEPT), [node("b", cluster="f")], Found()),
        (node("a", promises=KEPT), [node("b", promises=Promises(G, frozenset({"f"})))], TakeBack()),
        (node("a", promises=KEPT), [node("b", cluster="g")], TakeBack()),
        (node("a", promises=KEPT), [node("b", promises=Promises(G))], Ask(("b",))),
    ],
)
def test_what_a_node_does(me: Introduction, others: list[Introduction], step: Step) -> None:
    assert decide(me, others) == step


@pytest.mark.parametrize(
    ("me", "others", "unreached", "words"),
    [
        (node("a"), [node("b")], ["c:7400"], "2 of 3 routers are there (a, b); not reached: c:7400"),
        (node("a", expect=0), [], ["b:7400"], "nobody who is in one lets it in; not reached: b:7400"),
        (node("a"), [node("b", expect=5)], [], "node b expects 5 routers, this one 3; set the same everywhere"),
        (node("a", promises=KEPT), [node("b", promises=KEPT)], [], "c cannot be reached"),
        (node("s", roles=("sidecar",)), [node("b"), node("a")], [], "2 of 3 routers are there"),
    ],
)
def test_what_is_said_while_waiting(
    me: Introduction, others: list[Introduction], unreached: list[str], words: str
) -> None:
    step = decide(me, others, unreached)
    assert isinstance(step, Wait)
    assert words in step.why


def test_a_promise_is_given_once_and_a_refusal_for_ever() -> None:
    assert promised(Promises(), F) == KEPT
    assert promised(KEPT, F) == KEPT
    refusing = promised(KEPT, G)
    assert refusing == Promises(F, frozenset({"g"}))
    assert promised(Promises(None, frozenset({"g"})), G) == Promises(None, frozenset({"g"}))


@dataclass
class Live:
    """A node of the simulation. seen: the last introduction of each other, which may be long out of date."""

    me: Introduction
    seen: dict[str, Introduction] = field(default_factory=dict)
    cluster: Proposal | None = None


class World:
    """Nodes that see, decide and act in any order; what is seen may be of any age, but is never of the future."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.expect = self.random.choice((1, 3, 3, 5))
        names = [chr(ord("a") + i) for i in range(self.random.randint(self.expect, self.expect + 4))]
        self.nodes = {name: Live(node(name, expect=self.expect)) for name in names}
        self.proposals: dict[str, Proposal] = {}
        self.made = 0

    def turn(self) -> None:
        one = self.nodes[self.random.choice(sorted(self.nodes))]
        if one.me.cluster is not None:
            return
        for name, other in self.nodes.items():
            if other is not one and self.random.random() < self.reach:
                one.seen[name] = other.me
        if self.random.random() < 0.05:
            one.seen.clear()  # it was started again: what it promised is on its disk
        self.act(one, decide(one.me, list(one.seen.values())))

    reach = 0.4

    def act(self, one: Live, step: Step) -> None:
        if isinstance(step, Propose):
            self.made += 1
            proposal = Proposal(f"c{self.made}", step.voters)
            self.proposals[proposal.cluster] = proposal
            one.me = replace(one.me, promises=promised(one.me.promises, proposal))
        elif isinstance(step, Promise):
            one.me = replace(one.me, promises=promised(one.me.promises, step.proposal))
        elif isinstance(step, Ask):
            kept = one.me.promises.kept
            assert kept is not None
            for name in step.nodes:
                asked = self.nodes[name]
                if asked.me.cluster is None and self.random.random() < self.reach:
                    asked.me = replace(asked.me, promises=promised(asked.me.promises, kept))
        elif isinstance(step, TakeBack):
            one.me = replace(one.me, promises=taken_back(one.me.promises))
        elif isinstance(step, Found):
            kept = one.me.promises.kept
            assert kept is not None
            one.me, one.cluster = replace(one.me, cluster=kept.cluster), kept
        elif isinstance(step, Join):
            target = next(live for live in self.nodes.values() if live.me.address == step.address)
            if target.me.cluster is not None:
                one.me = replace(one.me, cluster=target.me.cluster)

    def check(self) -> None:
        founded = [live.cluster for live in self.nodes.values() if live.cluster is not None]
        by_voter: dict[str, str] = {}
        for proposal in founded:
            assert len(proposal.voters) == self.expect
            for voter in proposal.voters:
                assert by_voter.setdefault(voter, proposal.cluster) == proposal.cluster, "one voter, two clusters"
        for name, cluster in by_voter.items():
            live = self.nodes[name]
            kept = live.me.promises.kept
            assert live.me.cluster == cluster or (kept is not None and kept.cluster == cluster), "a promise was broken"


@pytest.mark.parametrize("block", range(8))
def test_no_voter_founds_two_clusters_and_all_end_up_in_one(block: int) -> None:
    for seed in range(block * 60, block * 60 + 60):
        world = World(seed)
        for _ in range(150):
            world.turn()
            world.check()
        world.reach = 1.0  # from now on nothing is lost
        for _ in range(2_000):
            world.turn()
            world.check()
            if all(live.me.cluster for live in world.nodes.values()):
                break
        assert all(live.me.cluster for live in world.nodes.values()), (seed, world.nodes)
