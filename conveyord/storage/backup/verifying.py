"""Looks at everything that a stopped node has, and changes nothing: the checks run on a copy."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.types import Entry, Mark
from conveyord.storage.backup.node_copy import copy_log, copy_state, opened_log
from conveyord.storage.backup.switching import identity_or_none, refuse_unfinished
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.connections import connect_to_read
from conveyord.storage.state_store.faults import translated
from conveyord.storage.state_store.layout import Layout
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import StateStore


@dataclass(slots=True)
class Report:
    """What was found. faults: sentences, none if all is well. What could not be read is None.

    base, last: of the log. commit: the highest index that the node had noted as committed. applied: of the state.
    digest: of the state's rows, by which nodes at the same index are compared.
    """

    node: str | None = None
    cluster: str | None = None
    term: int | None = None
    vote: str | None = None
    base: Mark | None = None
    last: Mark | None = None
    commit: int | None = None
    applied: Mark | None = None
    membership: Membership | None = None
    digest: bytes | None = None
    snapshots: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def verify(data_dir: Path, scratch: Path) -> Report:
    """Blocking. Check the log, the state and the snapshots of a stopped node as a start does, and more.

    scratch: an empty directory with room for a copy of log and state. Raises Refused if there is no such directory, or
    the node runs; StorageFull if there is no room. Damage is in the report.
    """
    if not data_dir.is_dir():
        raise Refused(f"{data_dir}: there is no such directory")
    report = Report()
    with _undisturbed(data_dir):
        with _noting(report):
            refuse_unfinished(data_dir)
        with _noting(report):
            identity = identity_or_none(data_dir)
            if identity is None:
                raise Corrupt(f"{data_dir} has no node.json, so nobody can say whose log this is")
            report.node, report.cluster = identity.node, identity.cluster
        with _noting(report):
            _check_snapshots(data_dir, report)
        if report.node is not None:
            with _noting(report):
                _check_log_and_state(data_dir, scratch, report.node, report)
    report.faults = [fault.replace(str(scratch), str(data_dir)) for fault in report.faults]
    return report


def _check_snapshots(data_dir: Path, report: Report) -> None:
    layout = Layout(data_dir / "state")
    for index in layout.all_snapshots():
        with _noting(report), SnapshotFile(layout.snapshot(index)) as snapshot:
            snapshot.verify()
            report.snapshots.append(index)


def _check_log_and_state(data_dir: Path, scratch: Path, node: str, report: Report) -> None:
    copy_log(data_dir, scratch / "raft")
    copy_state(data_dir, scratch / "state")
    with opened_log(scratch / "raft", node) as log:
        report.base = log.base
        store = _opened_state(scratch / "state", log, report)
        if store is None:
            _note_log(report, log, log.load(0))
            return
        with closing(store):
            report.applied, report.membership, report.digest = store.mark, store.membership, store.state_digest()
            loaded = log.load(store.mark.index)
            _note_log(report, log, loaded)
            _compare(report, log, loaded)


def _opened_state(directory: Path, log: RaftLog, report: Report) -> StateStore | None:
    try:
        _check_pages(Layout(directory))
        return StateStore.open(directory, base=log.base, membership=log.membership, migrations=MIGRATIONS)
    except (Corrupt, Refused) as error:
        report.faults.append(str(error))
        return None


def _note_log(report: Report, log: RaftLog, loaded: Loaded) -> None:
    hard = loaded.hard_state
    report.term, report.vote, report.commit = hard.term, hard.vote, hard.commit
    report.last = _mark_of(loaded.entries[-1]) if loaded.entries else log.base


def _compare(report: Report, log: RaftLog, loaded: Loaded) -> None:
    """What a start would find with the first entry, or not at all: log and state are of one history."""
    applied = report.applied
    assert applied is not None
    there = log.read(applied.index, applied.index + 1, 1) if applied.index > log.base.index else ()
    in_log = _mark_of(there[0]) if there else log.base
    if applied != in_log:
        report.faults.append(f"the state is of another log: at entry {applied.index} it has term {applied.term}")
    known = [(log.base.index, loaded.membership), *loaded.memberships]
    members = [membership for index, membership in known if index <= applied.index][-1]
    if members != report.membership:
        report.faults.append(
            f"at entry {applied.index} the log knows other members than the state: {_names(members)}, and "
            f"{_names(report.membership)}"
        )


def _check_pages(layout: Layout) -> None:
    """The whole of SQLite's check, which a start leaves out: also that every index has every row."""
    path = layout.state(max(layout.generations(), default=0))
    if path.is_file():
        with translated(path), closing(connect_to_read(path)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise Corrupt(f"the state is damaged: {verdict}")


@contextmanager
def _noting(report: Report) -> Iterator[None]:
    try:
        yield
    except (Corrupt, Refused) as error:
        report.faults.append(str(error))


@contextmanager
def _undisturbed(data_dir: Path) -> Iterator[None]:
    """No node runs meanwhile. Not even the files of locks are written to, so that a read-only disk will do."""
    with ExitStack() as stack:
        for lock in (data_dir / "lock", data_dir / "raft" / "lock"):
            if lock.exists():
                descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise Refused(
                        f"{lock.parent} is in use by a process that runs; stop the node, then verify it"
                    ) from error
        yield


def _mark_of(entry: Entry) -> Mark:
    return Mark(entry.index, entry.term, entry.chain)


def _names(membership: Membership | None) -> str:
    return ", ".join(sorted(membership.everyone)) if membership is not None and membership.everyone else "nobody"
