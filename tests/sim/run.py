"""One seed from beginning to end: faults, then peace, then the books.

python -m tests.sim.run --seed N [--seconds 60] [--profile P] [--without FAULT ...] [--shrink]
python -m tests.sim.run --seed N --count M
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable

from conveyord.core.errors import ConveyordError
from conveyord.core.raft.membership import Membership
from tests.sim.checks import Violation
from tests.sim.clients import Client, new_history
from tests.sim.faults import ACTS, PROFILES, RATES, draw, profile_of
from tests.sim.linear import is_linearizable
from tests.sim.nemesis import Nemesis
from tests.sim.world import World

SECONDS = 60.0
WRONG = (AssertionError, ConveyordError)
"""What the oracle or the core raises. No log of a simulated node may ever be `Corrupt` beyond what was flipped."""
LEADER_TIMEOUTS = 10  # of elections, until there is a leader; the slowest of 300 seeds needs five
PEACE_SECONDS = 20.0  # at most, for each of the rest: the slowest disks with the smallest limits; else 5 would do
CALLS_IN_PEACE = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Life:
    """What a seed is run with. without: acts and rates that are switched off."""

    seed: int
    seconds: float = SECONDS
    profile: str = ""
    without: frozenset[str] = frozenset()

    def command(self) -> str:
        """The command line that lives through it again."""
        words = [f"python -m tests.sim.run --seed {self.seed} --seconds {self.seconds:g}"]
        words += [f"--profile {self.profile}"] if self.profile else []
        return " ".join([*words, *(f"--without {name}" for name in sorted(self.without))])

    def world(self) -> World:
        """The world before anything has happened."""
        return World(self.seed, draw(self.seed, self.profile or profile_of(self.seed), self.without))


def live(world: World, seconds: float) -> None:
    """Live through a world. Raises Violation, or what comes out of the core."""
    names = [f"n{number}" for number in range(world.faults.nodes)]
    for name in names:
        world.boot(name, Membership(frozenset(names)))
    history = new_history()
    clients = [Client(world, history, number) for number in range(world.random.randint(2, 4))]
    nemesis = Nemesis(world)
    world.run_until(seconds)
    nemesis.heal()
    _live_in_peace(world, clients)
    for key, ops in history.items():
        if not is_linearizable(ops):
            raise Violation(f"the calls on key {key} are not linearizable: {len(ops)} calls")
    world.counts["events"] = world.events


def _live_in_peace(world: World, clients: list[Client]) -> None:
    """When all faults have ended, there is a leader, and every call ends; then all states are one."""
    calls = world.counts["calls"] + CALLS_IN_PEACE
    thawed = max(0.0, *(server.frozen_until - world.now for server in world.servers.values()))
    timeouts = LEADER_TIMEOUTS * world.options.election_timeout_seconds
    _wait(world, lambda: "no leader" if world.leader() is None else "", seconds=thawed + timeouts)
    seconds = PEACE_SECONDS + _seconds_of_backlog(world)
    _wait(world, lambda: "calls do not end" if world.counts["calls"] < calls else "", seconds=seconds)
    for client in clients:
        client.is_stopping = True
    _wait(world, lambda: "a call does not end" if any(client.call is not None for client in clients) else "")
    _wait(world, lambda: _difference(world))


def _seconds_of_backlog(world: World) -> float:
    """What the leader's uncommitted entries may take, one a message: thousands may wait where few are in flight."""
    leader = world.leader()
    assert leader is not None
    state, faults = leader.node.state, world.faults
    rounds = (state.log.last - state.commit) / state.options.inflight_messages
    return rounds * 4 * (faults.latency + faults.disk)


def _wait(world: World, missing: Callable[[], str], *, seconds: float = PEACE_SECONDS) -> None:
    until = world.now + seconds
    while what := missing():
        if world.now >= until:
            raise Violation(f"{what}, although nothing has failed for long")
        world.run_until(min(world.now + 0.5, until))


def _difference(world: World) -> str:
    """Who has not what the leader has; empty if nobody."""
    leader = world.leader()
    if leader is None:
        return "no leader"
    members, applied = leader.node.state.membership, leader.machine.applied
    if members.is_joint:
        return "two memberships at once"
    for name in sorted(members.everyone):
        if name not in world.servers:
            return f"{name} is a member still, and its disk is gone"
        if world.servers[name].machine.applied != applied:
            return f"{name} has not applied what the leader has"
        if world.servers[name].machine.dump() != leader.machine.dump():
            raise Violation(f"the state of {name} is not that of the leader {leader.name}")
    return ""


def failure(life: Life) -> Exception | None:
    """What a life ends with, if it does not end well."""
    try:
        live(life.world(), life.seconds)
    except WRONG as error:
        return error
    return None


def shrunk(life: Life) -> Life:
    """A shorter life with fewer faults that ends badly as well: faults are left out one by one, then time is cut."""
    for name in (*ACTS, *RATES):
        fewer = dataclasses.replace(life, without=life.without | {name})
        if fewer.world().faults != life.world().faults and failure(fewer) is not None:
            life = fewer
    low, high = 0.0, life.seconds
    while high - low > 1.0:
        middle = round((low + high) / 2, 1)
        if failure(dataclasses.replace(life, seconds=middle)) is None:
            low = middle
        else:
            high = middle
    return dataclasses.replace(life, seconds=high)


def _tell(life: Life, *, is_tail_told: bool) -> bool:
    """Live through it and print what happened. Returns whether it ended well."""
    world = life.world()
    print("faults:", world.faults.told())
    started = time.process_time()
    problem: Exception | None = None
    try:
        live(world, life.seconds)
    except WRONG as error:
        problem = error
    wall = time.process_time() - started
    print("counts:", dict(sorted(world.counts.items())))
    if problem is not None or is_tail_told:
        for when, name, *rest in world.tail:
            print(f"{when:10.4f} {name:8}", *rest)
    print(f"trace: {world.told_trace()}")
    print(
        f"speed: {world.events / wall:.0f} events/s, {world.now / wall:.0f} simulated s per s of a core",
        file=sys.stderr,
    )
    if problem is not None:
        print(f"VIOLATION at {world.now:.3f} s: {problem!r}\n{life.command()}")
    return problem is None


def _tell_many(first: int, count: int, life: Life) -> bool:
    """Live through many seeds; print those that end badly, and the sum of what happened."""
    counts, simulated, started, bad = Counter[str](), 0.0, time.process_time(), 0
    for seed in range(first, first + count):
        one = dataclasses.replace(life, seed=seed)
        world = one.world()
        try:
            live(world, one.seconds)
        except WRONG as error:
            bad += 1
            print(f"{one.command()}: at {world.now:.3f} s: {error!r}", flush=True)
        counts += world.counts
        simulated += world.now
    wall = time.process_time() - started
    print("counts:", dict(sorted(counts.items())))
    speed = f"{counts['events'] / wall:.0f} events/s, {simulated / wall:.0f} simulated s per s of a core"
    print(f"{count} seeds, {bad} bad; {speed}")
    return not bad


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description="One simulated life of a cluster.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="before all faults end")
    parser.add_argument("--profile", choices=PROFILES, default="", help="default: by the seed")
    parser.add_argument("--without", action="append", default=[], choices=[*ACTS, *RATES], metavar="FAULT")
    parser.add_argument("--count", type=int, default=1, help="of seeds, from the one that is named")
    parser.add_argument("--shrink", action="store_true", help="look for a smaller life that fails as well")
    parser.add_argument("--tail", action="store_true", help="print the last events even if all is well")
    options = parser.parse_args()
    life = Life(options.seed, options.seconds, options.profile, frozenset(options.without))
    if options.count > 1:
        return 0 if _tell_many(options.seed, options.count, life) else 1
    is_well = _tell(life, is_tail_told=options.tail)
    if not is_well and options.shrink:
        small = shrunk(life)
        print("\nthe smallest that fails as well:")
        _tell(small, is_tail_told=False)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
