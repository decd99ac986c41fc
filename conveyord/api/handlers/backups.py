"""Backups of the state. What they are, and how one is restored: docs/backup.md."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import trio

from conveyord import __version__
from conveyord.api.codes import Declined
from conveyord.api.context import Caller, Context
from conveyord.api.messages import (
    Backup,
    BackupCleanup,
    BackupCreate,
    BackupDescribe,
    BackupList,
    Backups,
    BackupsRemoved,
    OneBackup,
)
from conveyord.core.errors import Retryable
from conveyord.core.state.replies import NOT_FOUND
from conveyord.storage.backup.backups import Listed, open_backups
from conveyord.storage.backup.manifest import About
from conveyord.storage.state.reading import StateView

T = TypeVar("T")


async def create(context: Context, caller: Caller, request: BackupCreate) -> OneBackup:
    """See `BackupCreate`."""
    place = open_backups(request.store, context.backup_properties)
    cluster = (await context.cluster.read(StateView.cluster, stale=request.stale)).value
    if not cluster.id:
        raise Retryable("the cluster has no name yet, as it was founded just now; try again")
    snapshot = await context.cluster.take_snapshot()
    about = About(
        cluster=cluster.id,
        history=cluster.history,
        protocol=cluster.protocol,
        version=__version__,
        by=f"{caller.actor} at {context.cluster.identity.node}",
        created_at_ms=context.now_ms(),
    )

    # Held by who closes the snapshot: the thread that reads it, or this task if it is cancelled before that begins.
    closing = threading.Lock()

    def stored() -> Listed:
        if not closing.acquire(blocking=False):
            raise Retryable("the request was given up before its backup began")
        with snapshot:
            manifest = place.create(snapshot, about)
        return Listed(manifest.id, manifest)

    try:
        backup = await _in_thread(context, stored)
    finally:
        if closing.acquire(blocking=False):
            snapshot.close()
    return OneBackup(index=_applied(context), backup=_shown(backup))


async def list_(context: Context, _: Caller, request: BackupList) -> Backups:
    """See `BackupList`."""
    place = open_backups(request.store, context.backup_properties)
    found = await _in_thread(context, place.list)
    return Backups(index=_applied(context), backups=tuple(_shown(one) for one in found))


async def describe(context: Context, _: Caller, request: BackupDescribe) -> OneBackup:
    """See `BackupDescribe`."""
    place = open_backups(request.store, context.backup_properties)
    found = await _in_thread(context, place.list)
    for one in found:
        if one.id == request.id:
            return OneBackup(index=_applied(context), backup=_shown(one))
    raise Declined(
        NOT_FOUND, f"there is no backup {request.id!r} in {request.store}; list those that there are", field="id"
    )


async def cleanup(context: Context, _: Caller, request: BackupCleanup) -> BackupsRemoved:
    """See `BackupCleanup`."""
    place = open_backups(request.store, context.backup_properties)

    def removed() -> tuple[str, ...]:
        return place.cleanup(keep=request.keep)

    return BackupsRemoved(index=_applied(context), ids=await _in_thread(context, removed))


async def _in_thread(context: Context, work: Callable[[], T]) -> T:
    """A store may not answer for minutes: who is cancelled leaves the thread, which keeps its place until it ends."""
    return await trio.to_thread.run_sync(work, limiter=context.backups, abandon_on_cancel=True)


def _applied(context: Context) -> int:
    standing = context.cluster.standing
    return 0 if standing is None else standing.applied


def _shown(one: Listed) -> Backup:
    manifest = one.manifest
    if manifest is None:
        return Backup(id=one.id, fault=one.fault or "it cannot be used")
    return Backup(
        id=one.id,
        cluster=manifest.cluster,
        history=manifest.history,
        state_index=manifest.index,
        voters=manifest.voters,
        learners=manifest.learners,
        protocol=manifest.protocol,
        version=manifest.version,
        created_at_ms=manifest.created_at_ms,
        by=manifest.by,
        file_bytes=manifest.file_bytes,
        state_bytes=manifest.state_bytes,
        digest=manifest.digest,
    )
