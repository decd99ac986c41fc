"""The commands of the transcripts, one method each: `do_propose` is `propose a x`."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable

from conveyord.core.raft.membership import Change, Membership, Standing
from conveyord.core.raft.messages import (
    ChangeMembers,
    Compacted,
    DiskHealth,
    Message,
    Read,
    SnapshotReceived,
    SnapshotSent,
    Tick,
    Transfer,
)
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.types import HardState, Mark, NodeId, Options
from tests.unit.raft import telling
from tests.unit.raft.rig import entries_of
from tests.unit.raft.stage import Counter, Platter, Stage

LIMITS = {option.name: option.type for option in dataclasses.fields(Options)}


def _only(words: dict[str, str]) -> Callable[[Message], bool]:
    """from=, to=, kind= and entry=; all messages if nothing is named."""
    sender, to, kind, index = words.get("from"), words.get("to"), words.get("kind"), words.get("entry")
    return lambda message: (
        (sender is None or message.sender in sender)
        and (to is None or message.to in to)
        and (kind is None or type(message).__name__ in kind.split(","))
        and (index is None or any(entry.index == int(index) for entry in getattr(message, "entries", ())))
    )


class Script:
    """Carries out one command after the other."""

    def __init__(self) -> None:
        self._stage: Stage | None = None

    @property
    def stage(self) -> Stage:
        """The cluster, once `nodes` has made it."""
        assert self._stage is not None, "a transcript begins with `nodes`"
        return self._stage

    def run(self, line: str) -> list[str]:
        """One command: what it led to."""
        name, *words = shlex.split(line)
        quietly = "quietly" in words
        plain = [word for word in words if "=" not in word and word != "quietly"]
        named = dict(word.split("=", 1) for word in words if "=" in word)
        getattr(self, f"do_{name}")(*plain, **({"named": named} if named or name in NAMED else {}))
        said, self.stage.said = self.stage.said, []
        return [] if quietly else said

    def do_nodes(self, names: str, *, named: dict[str, str]) -> None:
        """nodes abc [learners=d] [outside=e] [log.a=1,1,2] [term=2] [commit=3] [OPTION=VALUE ...]"""
        learners, outside = named.pop("learners", ""), named.pop("outside", "")
        term, commit = int(named.pop("term", 0)), int(named.pop("commit", 0))
        membership = Membership(frozenset(names) - set(learners), frozenset(learners))
        loaded = dict[NodeId, Loaded]()
        for key in [key for key in named if key.startswith("log.")]:
            terms = [int(one) for one in named.pop(key).split(",") if one]
            hard = HardState(max([term, *terms]), None, min(commit, len(terms)))
            for name in key.removeprefix("log."):
                loaded[name] = Loaded(hard, membership=membership, entries=entries_of(terms))
        limits = {key: float(one) if "float" in str(LIMITS[key]) else int(one) for key, one in named.items()}
        self._stage = Stage(names, membership, loaded, dataclasses.replace(Options(), **limits))  # type: ignore[arg-type]
        for name in outside:
            self.do_start(name)

    def do_start(self, name: str) -> None:
        """start d: a node with an empty disk that knows nobody"""
        self.stage.platters[name], self.stage.counters[name] = Platter(), Counter()
        self.stage.start(name, Loaded())

    def do_campaign(self, name: str) -> None:
        """campaign a: its election time has run out"""
        self.stage[name].node.state.election_at = self.stage.now
        self.stage.step(name, Tick())

    def do_elect(self, name: str) -> None:
        """elect a: nobody has heard a leader lately, a campaigns, and everything settles"""
        self.stage.elect(name)

    def do_wait(self, seconds: str, *words: str) -> None:
        """wait 0.5 [unsettled]: T is 1.0"""
        self.stage.wait(float(seconds), settle="unsettled" not in words)

    def do_deliver(self, *, named: dict[str, str]) -> None:
        """deliver [from=a] [to=bc] [kind=Append,Vote]: one round of what is in the mail now"""
        self.stage.deliver(only=_only(named))

    def do_lose(self, *, named: dict[str, str]) -> None:
        """lose [from=] [to=] [kind=]: it is never delivered"""
        only = _only(named)
        for message in [message for message in self.stage.mail if only(message)]:
            self.stage.mail.remove(message)
            self.stage.say(f"{telling.message(message)}: lost")

    def do_cut(self, *, named: dict[str, str]) -> None:
        """cut [from=] [to=] [kind=] [entry=3]: from now on, what is such is lost"""
        self.stage.cuts.append(_only(named))

    def do_isolate(self, names: str) -> None:
        """isolate bc: nothing goes between them and the others"""
        self.stage.cuts.append(lambda message: (message.sender in names) is not (message.to in names))

    def do_heal(self) -> None:
        """heal: nothing is cut any more"""
        self.stage.cuts.clear()

    def do_persist(self, name: str) -> None:
        """persist b: what it has written reaches its disk"""
        self.stage.persist(name)

    def do_land(self, name: str) -> None:
        """land b: the first of its writes reaches its disk"""
        self.stage.land(name)

    def do_slow(self, name: str) -> None:
        """slow b: its writes wait for `persist`"""
        self.stage.slow.add(name)

    def do_quick(self, name: str) -> None:
        """quick b: no longer"""
        self.stage.slow.discard(name)

    def do_stabilize(self) -> None:
        """stabilize: deliver and write until nothing is left"""
        self.stage.settle()

    def do_propose(self, name: str, *commands: str) -> None:
        """propose a x y"""
        self.stage.propose(name, *(command.encode() for command in commands))

    def do_read(self, name: str, ticket: str) -> None:
        """read b 7"""
        self.stage.step(name, Read(int(ticket)))

    def do_transfer(self, name: str, to: str = "") -> None:
        """transfer a [b]"""
        self.stage.step(name, Transfer(to or None))

    def do_change(self, name: str, *, named: dict[str, str]) -> None:
        """change a d=voter b=gone"""
        changes = tuple(Change(node, Standing(standing)) for node, standing in named.items())
        self.stage.step(name, ChangeMembers(0, changes))

    def do_compact(self, name: str, index: str) -> None:
        """compact a 4: a snapshot of entry 4 exists, and the log begins after it"""
        platter, at = self.stage.platters[name], int(index)
        entry = platter.entries[at - platter.base.index - 1]
        platter.membership = self.stage[name].node.state.memberships.at(at)
        del platter.entries[: at - platter.base.index]
        platter.base = Mark(at, entry.term, entry.chain)
        self.stage.step(name, Compacted(platter.base))

    def do_stream(self, name: str, to: str, *words: str) -> None:
        """stream a c [broken]: a's snapshot arrives at c, or does not"""
        platter, term = self.stage.platters[name], self.stage[name].node.state.term
        if "broken" in words:
            self.stage.step(name, SnapshotSent(to, None))
            return
        self.stage.step(to, SnapshotReceived(name, term, platter.base, platter.membership))
        self.stage.step(name, SnapshotSent(to, platter.base.index))

    def do_fetch(self, name: str) -> None:
        """fetch a: its disk hands out what it asked for first"""
        self.stage.fetched(name)

    def do_sick(self, name: str) -> None:
        """sick a: its disk takes no writes in time"""
        self.stage.step(name, DiskHealth(is_well=False))

    def do_crash(self, name: str) -> None:
        """crash b: what is not on its disk is lost"""
        self.stage.crash(name)

    def do_restart(self, name: str) -> None:
        """restart b: on what is on its disk"""
        self.stage.restart(name)

    def do_mail(self) -> None:
        """mail: what is on its way"""
        for message in self.stage.mail:
            self.stage.say(telling.message(message))

    def do_state(self) -> None:
        """state: what everyone is and has"""
        for name, rig in self.stage.rigs.items():
            state = rig.node.state
            self.stage.say(
                f"{name}: {telling.role(state)}, {telling.members(state.membership)}, log {telling.log(state.log)}, "
                f"commit {state.commit}, applied {state.applied}"
            )

    def do_progress(self, name: str) -> None:
        """progress a: what a leader knows of the others"""
        leading = self.stage[name].node.state.leading
        assert leading is not None, f"{name} does not lead"
        for peer, progress in sorted(leading.peers.items()):
            self.stage.say(f"{peer}: {progress.mode.value}, match {progress.match}, next {progress.next}")


NAMED = {"nodes", "deliver", "lose", "cut", "change"}
