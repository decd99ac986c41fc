"""What a backup says of itself: JSON beside the file of its snapshot, sealed with a hash of all its fields.

The manifest is written last, so a backup without one does not exist. What it says is believed only as far as the
snapshot says the same: a restore compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.state.names import shown, wrong_id
from conveyord.storage.state_store.snapshot_head import DIGEST_BYTES

FORMAT = 1
MANIFEST_BYTES_MAX = 1 << 20  # 255 members with the longest ids are a tenth of it
SEAL_BYTES = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ID = re.compile(r"[0-9]{8}T[0-9]{9}Z-[0-9]{12,19}-[0-9a-f]{6}")
_DIGEST_CHARS = (
    6  # of an id: two nodes may be asked in the same millisecond, and their snapshots are not the same bytes
)


@dataclass(frozen=True, slots=True)
class About:
    """What a snapshot does not say by itself, and its manifest does.

    cluster, history, protocol: of the cluster that it is taken of. version: of this conveyord. by: who made it.
    created_at_ms: Unix time.
    """

    cluster: str
    history: str
    protocol: int
    version: str
    by: str
    created_at_ms: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One backup. index, term, chain: its place in the log. voters, learners: at that place.

    digest: by which its file is known, in hex. created_at_ms: Unix time. Backups sort by their ids as they were made.
    """

    format: int
    id: str
    cluster: str
    history: str
    index: int
    term: int
    chain: str
    voters: tuple[str, ...]
    learners: tuple[str, ...]
    protocol: int
    version: str
    created_at_ms: int
    by: str
    file_bytes: int
    state_bytes: int
    digest: str


def is_id(text: str) -> bool:
    """Whether a backup can be called so: by its time in UTC, the index of its last entry and some of its digest."""
    return _ID.fullmatch(text) is not None


def manifest_of(info: SnapshotInfo, about: About) -> Manifest:
    """The manifest of a snapshot. Raises Refused for a cluster that was not formed yet."""
    if wrong_id("cluster", about.cluster) is not None:
        raise Refused(
            f"a backup needs the cluster that it is of, and {shown(about.cluster)} is none; make one once the cluster "
            "is formed"
        )
    at = _EPOCH + timedelta(milliseconds=about.created_at_ms)
    time = f"{at:%Y%m%dT%H%M%S}{about.created_at_ms % 1000:03}Z"
    return Manifest(
        format=FORMAT,
        id=f"{time}-{info.mark.index:012}-{info.digest.hex()[:_DIGEST_CHARS]}",
        cluster=about.cluster,
        history=about.history,
        index=info.mark.index,
        term=info.mark.term,
        chain=info.mark.chain.hex(),
        voters=tuple(sorted(info.membership.electorate)),
        learners=tuple(sorted(info.membership.learners)),
        protocol=about.protocol,
        version=about.version,
        created_at_ms=about.created_at_ms,
        by=about.by,
        file_bytes=info.file_bytes,
        state_bytes=info.state_bytes,
        digest=info.digest.hex(),
    )


def encode(manifest: Manifest) -> bytes:
    """As it is stored."""
    fields = msgspec.to_builtins(manifest)
    return msgspec.json.format(msgspec.json.encode({**fields, "seal": _seal(fields)}), indent=2) + b"\n"


def decode(data: bytes, name: str) -> Manifest:
    """The inverse of `encode`. name: the id under which it is stored.

    Raises Corrupt if it is not what was written, or another backup's; Refused if a newer conveyord wrote it.
    """
    try:
        fields: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(name, f"its manifest is no JSON: {error}") from error
    found = fields.get("format")
    if type(found) is int and found > FORMAT:
        raise Refused(
            f"backup {name} has format {found}, this conveyord knows {FORMAT}; use the newer one that made it"
        )
    if fields.pop("seal", None) != _seal(fields):
        raise damaged(name, "its manifest is not what was written")
    try:
        manifest = msgspec.convert(fields, Manifest)
    except msgspec.ValidationError as error:
        raise damaged(name, f"its manifest is none: {error}") from error
    if manifest.id != name:
        raise damaged(name, f"its manifest is that of {manifest.id}")
    return manifest


def damaged(name: str, reason: str) -> Corrupt:
    """The error that a backup cannot be used."""
    return Corrupt(f"backup {name} is damaged: {reason}; use another one, see conveyorctl backup list")


def checked(parts: Iterable[bytes], manifest: Manifest) -> Iterator[bytes]:
    """Pass on the bytes of a snapshot, and raise Corrupt at the end, or before, unless they are those of `manifest`."""
    hashed, body_left, tail = blake2b(digest_size=DIGEST_BYTES), manifest.file_bytes - DIGEST_BYTES, b""
    for part in parts:
        body = part[: max(body_left, 0)]
        hashed.update(body)
        body_left -= len(body)
        tail += part[len(body) :]
        if len(tail) > DIGEST_BYTES:
            raise damaged(manifest.id, f"its snapshot has more than {manifest.file_bytes} bytes")
        yield part
    missing = body_left + DIGEST_BYTES - len(tail)
    if missing:
        raise damaged(manifest.id, f"its snapshot ends {missing} bytes before the {manifest.file_bytes} that it had")
    if not hashed.hexdigest() == tail.hex() == manifest.digest:
        raise damaged(manifest.id, "the bytes of its snapshot are not those that were written")


def _seal(fields: dict[str, Any]) -> str:
    return blake2b(msgspec.json.encode(fields, order="sorted"), digest_size=SEAL_BYTES).hexdigest()
