"""A backup becomes the data directory of a node that is a cluster of one; and whether it could."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conveyord import __version__
from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.state.machine import MACHINE
from conveyord.storage.backup.alone import Beginning, Contents, begin_alone, check_names, contents_of, is_named_after
from conveyord.storage.backup.backups import Backups
from conveyord.storage.backup.manifest import Manifest, damaged
from conveyord.storage.backup.switching import files_there, held, identity_or_none, replacing, settle
from conveyord.storage.identity import ID_BYTES, Identity
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.layout import Layout
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.staging import stage
from conveyord.storage.state_store.store import StateStore


@dataclass(frozen=True, slots=True)
class Restored:
    """The node that can be started now. aside: where the files of the node lie that was there before, if one was."""

    identity: Identity
    manifest: Manifest
    aside: Path | None


def validate(
    backups: Backups, id_: str, scratch: Path, *, expect_cluster: str | None, data_dir: Path | None, force: bool
) -> Manifest:
    """Blocking. Everything that `restore` looks at, without making anything but files in `scratch`, an empty directory.

    data_dir: where it would go, if that is to be looked at as well. Raises as `restore` does.
    """
    manifest = _suitable(backups, id_, expect_cluster)
    if data_dir is not None and data_dir.is_dir():
        alone = "leave out --data-dir to check the backup alone, or name a directory without a node"
        _check_free(data_dir, manifest, force=force, remedy=alone)
    _contents(backups, manifest, scratch)
    return manifest


def restore(
    backups: Backups,
    id_: str,
    data_dir: Path,
    *,
    node: str | None,
    new_history: str,
    expect_cluster: str | None,
    force: bool,
    actor: str,
    at_ms: int,
) -> Restored:
    """Blocking. Make a data directory in which one node starts as a cluster of one, with the state of a backup.

    node: its id; None for that of the node that was there, or a new one. new_history: an id that was never used.
    expect_cluster: the id that the cluster of the backup must have. force: move aside what a node of this cluster has
    there. actor: on whose behalf, for the audit. at_ms: Unix time.

    Raises Refused if there is no such backup, it is of another cluster or a newer conveyord, the directory is another
    cluster's, in use, or has a node and `force` is not given; Corrupt if the backup is damaged; ConfigError for what is
    no id; StorageFull or Retryable. The directory is as it was then. After a crash a node refuses to start in it
    (`refuse_unfinished`), until this was run again.
    """
    check_names(history=new_history, node=node)
    manifest = _suitable(backups, id_, expect_cluster)
    with held(data_dir):
        settle(data_dir)
        old = _check_free(
            data_dir,
            manifest,
            force=force,
            remedy="--force moves that aside, or restore into another directory",
        )
        was_there = bool(files_there(data_dir))
        if node is None:
            node = old.node if old is not None else f"n-{secrets.token_hex(ID_BYTES)}"
        incarnation = old.incarnation if old is not None and old.node == node else 0
        with replacing(data_dir, what=f"the restore of backup {id_}", aside=f"before-{id_}") as site:
            contents = _contents(backups, manifest, site.building)
            term = contents.place.mark.term + 1
            identity = begin_alone(
                site.building, contents, Beginning(node, incarnation, new_history, term, actor, at_ms)
            )
        return Restored(identity, manifest, site.aside if was_there else None)


def _suitable(backups: Backups, id_: str, expect_cluster: str | None) -> Manifest:
    """What can be told by the manifest alone, before anything is copied."""
    manifest = backups.describe(id_)
    if expect_cluster is not None and manifest.cluster != expect_cluster:
        raise Refused(
            f"backup {id_} is of cluster {manifest.cluster}, and {expect_cluster} was expected; choose another backup, "
            "or another place for backups"
        )
    _check_protocol(id_, manifest.protocol, manifest.version)
    return manifest


def _check_protocol(id_: str, protocol: int, version: str) -> None:
    if protocol > MACHINE.protocol_max:
        raise Refused(
            f"backup {id_} is of a cluster that speaks protocol {protocol} (conveyord {version}), a newer version than "
            f"this, which knows {MACHINE.protocol_max}; restore it with conveyord {version}"
        )


def _check_free(data_dir: Path, manifest: Manifest, *, force: bool, remedy: str) -> Identity | None:
    """Whether something of a node is there that must not be moved aside. Returns whose it is, if that can be told.

    remedy: where `force` is missing.
    """
    identity = identity_or_none(data_dir)
    name = None if identity is None else identity.cluster
    if name is not None and not is_named_after(name, manifest.cluster):
        raise Refused(
            f"{data_dir} belongs to cluster {name}, and backup {manifest.id} is of cluster {manifest.cluster}; move "
            "that directory away, or restore into another one"
        )
    if (there := files_there(data_dir)) and not force:
        whose = f"of node {identity.node}" if identity is not None else "of a node"
        raise Refused(f"{data_dir} has {', '.join(there)} {whose}; {remedy}")
    return identity


def _contents(backups: Backups, manifest: Manifest, directory: Path) -> Contents:
    """Fetch the backup, unpack it as a state below `directory`, and check both."""
    with _opened(backups, manifest, directory) as store:
        contents = contents_of(store)
    cluster = contents.cluster
    if cluster.id != manifest.cluster:
        raise damaged(
            manifest.id, f"it says that it is of cluster {manifest.cluster}, and its state is of {cluster.id}"
        )
    _check_protocol(manifest.id, cluster.protocol, manifest.version)
    return contents


@contextmanager
def _opened(backups: Backups, manifest: Manifest, directory: Path) -> Iterator[StateStore]:
    file, layout = directory / "backup.snapshot", Layout(directory / "state")
    backups.fetch(manifest.id, file)
    with SnapshotFile(file) as snapshot:
        info = snapshot.info
    _check_says(manifest, info)
    try:
        layout.directory.mkdir()
        stage(layout, file, info, MIGRATIONS)
        file.unlink()
        layout.promote(info.mark.index)
        store = StateStore.open(layout.directory, base=info.mark, membership=info.membership, migrations=MIGRATIONS)
    except Corrupt as error:
        raise damaged(manifest.id, f"its bytes are those that were written, but {error}") from error
    except Refused as error:
        raise Refused(
            f"backup {manifest.id} was made by conveyord {manifest.version}, this is {__version__}: {error}"
        ) from error
    try:
        yield store
    finally:
        store.close()


def _check_says(manifest: Manifest, info: SnapshotInfo) -> None:
    mark, members = info.mark, info.membership
    place = (mark.index, mark.term, mark.chain.hex(), info.state_bytes)
    known = (tuple(sorted(members.electorate)), tuple(sorted(members.learners)))
    if (manifest.index, manifest.term, manifest.chain, manifest.state_bytes) != place or (
        manifest.voters,
        manifest.learners,
    ) != known:
        raise damaged(
            manifest.id, f"its manifest says entry {manifest.index}, and its snapshot {mark.index} or other members"
        )
