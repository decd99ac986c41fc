"""A node that lost the majority for good becomes a cluster of one, with everything that is in its log."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.node import Loaded
from conveyord.storage.backup.alone import Beginning, Contents, begin_alone, check_names, contents_of
from conveyord.storage.backup.node_copy import copy_log, copy_state, opened_log
from conveyord.storage.backup.switching import held, identity_or_none, replacing, settle
from conveyord.storage.identity import Identity
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.store import StateStore

APPLY_BYTES, APPLY_ENTRIES = 4 << 20, 10_000  # of one transaction


@dataclass(frozen=True, slots=True)
class Recovered:
    """last: the index up to which everything counts now. known: up to which the node had known it to be committed.

    lost: the voters of before that are no members any more. aside: where the node's files of before lie.
    """

    identity: Identity
    last: int
    known: int
    lost: tuple[str, ...]
    aside: Path


def recover(data_dir: Path, new_history: str, *, actor: str, at_ms: int) -> Recovered:
    """Blocking. Make of a stopped node one that is a cluster of one.

    Every entry of its log counts as committed then, also those that no majority ever had, and what other nodes had
    committed and this one lacks is lost. new_history: an id that was never used. actor: on whose behalf, for the audit.
    at_ms: Unix time.

    Raises Refused if the node runs, was never a member, or needs nobody else; Corrupt if what it has is damaged;
    ConfigError for what is no id; StorageFull or Retryable. The directory is as it was then. It takes room for a second
    state. After a crash a node refuses to start there (`refuse_unfinished`), until this was run again.
    """
    check_names(history=new_history, node=None)
    if not data_dir.is_dir():
        raise Refused(f"{data_dir}: there is no such directory; give the one of the node that is left")
    with held(data_dir):
        settle(data_dir)
        identity = identity_or_none(data_dir)
        if identity is None:
            raise Refused(
                f"{data_dir} is no node's directory: it has no node.json; give the one of the node that is left"
            )
        what = f"the recovery of node {identity.node}"
        with replacing(data_dir, what=what, aside=f"before-{new_history}") as site:
            copy_log(data_dir, site.building / "log-copy")
            copy_state(data_dir, site.building / "state")
            try:
                with opened_log(site.building / "log-copy", identity.node) as log:
                    contents, loaded = _apply_all(log, site.building / "state", identity.node)
            except Corrupt as error:  # it is about the copy
                raise Corrupt(str(error).replace(str(site.building), str(data_dir))) from error
            shutil.rmtree(site.building / "log-copy")
            shutil.rmtree(site.building / "state" / "snapshots", ignore_errors=True)  # of before the log's beginning
            term = loaded.hard_state.term + 1
            beginning = Beginning(identity.node, identity.incarnation, new_history, term, actor, at_ms)
            made = begin_alone(site.building, contents, beginning)
        lost = contents.place.membership.electorate - {identity.node}
        known = max(loaded.hard_state.commit, loaded.applied)
        return Recovered(made, contents.place.mark.index, known, tuple(sorted(lost)), site.aside)


def _apply_all(log: RaftLog, directory: Path, node: str) -> tuple[Contents, Loaded]:
    store = StateStore.open(directory, base=log.base, membership=log.membership, migrations=MIGRATIONS)
    try:
        loaded = log.load(store.mark.index)
        members = loaded.memberships[-1][1] if loaded.memberships else loaded.membership
        _check_needed(node, members)
        execute = Executor().execute
        while entries := log.read(store.mark.index + 1, store.mark.index + 1 + APPLY_ENTRIES, APPLY_BYTES):
            store.apply(entries, execute)
        contents = contents_of(store)
    finally:
        store.close()
    if not contents.cluster.id:
        raise Refused(f"node {node} is in no cluster yet, so nothing is lost with it; start anew on an empty directory")
    return contents, loaded


def _check_needed(node: str, members: Membership) -> None:
    if not members.everyone:
        raise Refused(f"node {node} never was a member of a cluster, so there is nothing to recover; let it join one")
    if members.electorate == {node}:
        raise Refused(f"node {node} is the only voter of its cluster and needs nobody else; start it")
