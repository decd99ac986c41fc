"""Members that come, go and are replaced; and the operator, who never stops to care for them."""

from __future__ import annotations

from random import Random

from conveyord.core.raft.membership import Change, Membership, Standing
from conveyord.core.raft.messages import ChangeMembers, Transfer
from tests.sim.server import Server
from tests.sim.world import World

OPERATOR_SECONDS = 0.4
MEMBERS_MIN, MEMBERS_MAX = 3, 7


class Churn:
    """The nemesis' acts on members. The operator: whose disk is gone is removed, its machine taken in under another
    name as a learner, and made a voter as soon as the leader says that it has caught up.
    """

    def __init__(self, world: World, random: Random) -> None:
        self.world, self.random = world, random
        self._wanted: set[str] = set()
        world.at(OPERATOR_SECONDS, self._care)

    # -------------------------------------------------------------------------- the operator

    def _care(self) -> None:
        leader = self.world.leader()
        if leader is not None:
            self._care_with(leader, leader.node.state.membership)
        self.world.at(OPERATOR_SECONDS, self._care)

    def _care_with(self, leader: Server, members: Membership) -> None:
        self._wanted -= members.voters
        changes = list[Change]()
        for gone, anew in sorted(self.world.lost.items()):
            if gone in members.everyone:
                changes.append(Change(gone, Standing.GONE))
                if anew in self.world.servers and anew not in members.everyone:
                    changes.append(Change(anew, Standing.LEARNER))
                    self._wanted.add(anew)
        if not changes:
            ready = [name for name in sorted(self._wanted & members.learners) if name in self.world.servers]
            changes = [Change(name, Standing.VOTER) for name in ready[:1]]
        self._ask(leader, changes)

    def _ask(self, leader: Server, changes: list[Change]) -> None:
        """Ask for a change, unless it would leave those who are intact without a majority."""
        members = leader.node.state.membership
        voters = set(members.voters)
        for change in changes:
            voters.discard(change.node)
            if change.standing is Standing.VOTER:
                voters.add(change.node)
        after = Membership(frozenset(voters))
        if changes and voters and self.world.is_quorum(after, self.world.intact()):
            self.world.counts["changes"] += 1
            leader.run(ChangeMembers(0, tuple(changes)))

    # -------------------------------------------------------------------------- the acts

    def transfer(self) -> None:
        """Ask the leader to hand over, to anybody or to somebody who may even be no voter."""
        leader = self.world.leader()
        if leader is not None:
            to = self.random.choice([None, self.random.choice(sorted(self.world.servers))])
            self.world.counts["transfers"] += 1
            leader.run(Transfer(to))

    def change_members(self) -> None:
        """Promote, demote or remove somebody. Who is removed runs on, and knows it or not."""
        leader = self.world.leader()
        if leader is None:
            return
        members = leader.node.state.membership
        if members.learners and self.random.random() < 0.6:
            self._ask(leader, [Change(self.random.choice(sorted(members.learners)), Standing.VOTER)])
        elif len(members.voters) > MEMBERS_MIN or self.random.random() < 0.2:
            name = self.random.choice(sorted(members.everyone))
            self._ask(leader, [Change(name, self.random.choice([Standing.LEARNER, Standing.GONE]))])

    def swap_members(self) -> None:
        """Voters become learners and learners voters, all in one change."""
        leader = self.world.leader()
        if leader is None:
            return
        members = leader.node.state.membership
        down = self.random.sample(sorted(members.voters), min(len(members.voters), self.random.randint(1, 2)))
        up = self.random.sample(sorted(members.learners), min(len(members.learners), self.random.randint(0, 2)))
        self._wanted |= set(down)
        changes = [Change(name, Standing.LEARNER) for name in down] + [Change(name, Standing.VOTER) for name in up]
        if len(members.voters) - len(down) + len(up) >= 2:
            self._ask(leader, changes)

    def remove_leader(self) -> None:
        """The leader leaves, or becomes a learner; who comes back later."""
        leader = self.world.leader()
        if leader is not None and len(leader.node.state.membership.voters) >= MEMBERS_MIN:
            standing = self.random.choice([Standing.LEARNER, Standing.GONE])
            self._wanted.add(leader.name)
            self._ask(leader, [Change(leader.name, standing)])

    def replace_member(self) -> None:
        """A machine begins anew under another name although nothing is wrong with it; its old self runs on."""
        leader = self.world.leader()
        if leader is None or len(self.world.servers) > MEMBERS_MAX:
            return
        name = self.random.choice(sorted(leader.node.state.membership.everyone))
        if name not in self.world.servers:
            return
        anew = self.world.another_name(name)
        self.world.boot(anew)
        self._wanted.add(anew)
        self.world.counts["replaced"] += 1
        self._ask(leader, [Change(name, Standing.GONE), Change(anew, Standing.LEARNER)])

    def readmit_member(self) -> None:
        """Who was removed once, with all that is on its disk, or never got in, is taken in."""
        leader = self.world.leader()
        if leader is None:
            return
        outside = sorted(self.world.servers.keys() - leader.node.state.membership.everyone)
        if outside:
            name = self.random.choice(outside)
            self._wanted.add(name)
            self._ask(leader, [Change(name, Standing.LEARNER)])
