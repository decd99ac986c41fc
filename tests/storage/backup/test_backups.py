"""Backups in a directory: made, listed, fetched, cleaned up; and what is wrong with damaged ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database

from conveyord.core.errors import ConfigError, Corrupt, Refused, Retryable, StorageFull
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.storage.backup import directory_store
from conveyord.storage.backup.backups import LEFTOVER_SECONDS, Backups, open_backups
from conveyord.storage.backup.directory_store import DirectoryStore
from conveyord.storage.backup.manifest import Manifest, checked, decode, encode, is_id
from conveyord.storage.backup.restoring import validate
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import StateStore
from tests.storage.backup.rig import ABOUT, VOTERS, made, script, snapshot_of
from tests.storage.crash_rig import Crashed, crashing


def at(seconds: int) -> object:
    """A backup of later."""
    return replace(ABOUT, created_at_ms=ABOUT.created_at_ms + 1_000 * seconds)


@pytest.fixture
def snapshot(tmp_path: Path) -> Iterator[SnapshotFile]:
    with snapshot_of(tmp_path / "taken", script()) as found:
        yield found


@pytest.fixture
def backups(tmp_path: Path) -> Backups:
    return open_backups((tmp_path / "backups").as_uri(), {})


def test_a_backup_says_what_it_is_of_and_comes_back_byte_by_byte(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    assert manifest == backups.describe(manifest.id) == backups.list()[0].manifest
    assert (manifest.id[:-7], manifest.created_at_ms) == ("20261122T083015123Z-000000000012", ABOUT.created_at_ms)
    assert is_id(manifest.id)
    assert (manifest.cluster, manifest.index, manifest.voters, manifest.learners) == ("c1", 12, ("a", "b", "c"), ())
    (taken,) = (tmp_path / "taken" / "snapshots").iterdir()
    assert backups.fetch(manifest.id, tmp_path / "copy") == manifest
    assert (tmp_path / "copy").read_bytes() == taken.read_bytes()
    assert sorted(path.name for path in (tmp_path / "backups").iterdir()) == [
        f"{manifest.id}.json", f"{manifest.id}.snapshot"
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "backups").iterdir()} == {0o600}, "it holds hashes"


def test_the_newest_comes_first_and_cleanup_leaves_it(backups: Backups, snapshot: SnapshotFile) -> None:
    ids = [backups.create(snapshot, at(second)).id for second in (3, 1, 2)]
    newest_first = sorted(ids, reverse=True)
    assert [one.id for one in backups.list()] == newest_first
    assert list(backups.cleanup(keep=2)) == newest_first[2:]
    assert list(backups.cleanup(keep=1)) == newest_first[1:2]
    assert backups.cleanup(keep=1) == ()
    assert [one.id for one in backups.list()] == newest_first[:1]
    with pytest.raises(ConfigError, match="keep is 0, and the newest backup always stays"):
        backups.cleanup(keep=0)


def test_cleanup_keeps_so_many_of_each_cluster(backups: Backups, snapshot: SnapshotFile) -> None:
    first = backups.create(snapshot, replace(ABOUT, cluster="c9")).id
    others = [backups.create(snapshot, at(second)).id for second in (1, 2)]
    assert backups.cleanup(keep=1) == (others[0],)
    assert {one.id for one in backups.list()} == {first, others[1]}


def test_a_damaged_one_is_listed_with_its_fault_and_does_not_count(
    tmp_path: Path, backups: Backups, snapshot: SnapshotFile
) -> None:
    whole, newest = (backups.create(snapshot, at(second)).id for second in (1, 2))
    (tmp_path / "backups" / f"{newest}.json").write_bytes(b"{")
    listed = backups.list()
    assert [(one.id, one.manifest is None) for one in listed] == [(newest, True), (whole, False)]
    assert "its manifest is no JSON" in (listed[0].fault or "")
    assert backups.cleanup(keep=1) == ()
    with pytest.raises(Corrupt, match="its manifest is no JSON"):
        backups.describe(newest)
    backups.delete(newest)
    assert [one.id for one in backups.list()] == [whole]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("json", b"[]", "no JSON"),
        ("json", b"\xff", "no JSON"),
        ("json", b"{}", "not what was written"),
        ("json", b" " * ((1 << 20) + 1), "has 1048577 bytes, at most 1048576"),
        ("json", b'{"format": 2}', "has format 2, this conveyord knows 1"),
        ("snapshot", b"", "its snapshot has 0 bytes, and had"),
        ("snapshot", None, "its snapshot is missing"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, backups: Backups, snapshot: SnapshotFile, name: str, content: bytes | None, fault: str
) -> None:
    id_ = backups.create(snapshot, ABOUT).id
    path = tmp_path / "backups" / f"{id_}.{name}"
    path.unlink() if content is None else path.write_bytes(content)
    assert fault in (backups.list()[0].fault or "")
    with pytest.raises((Corrupt, Refused), match=fault.split(" at most", maxsplit=1)[0]):
        backups.fetch(id_, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_manifest_of_another_backup_is_noticed(tmp_path: Path, backups: Backups, snapshot: SnapshotFile) -> None:
    one, other = (backups.create(snapshot, at(second)).id for second in (1, 2))
    home = tmp_path / "backups"
    (home / f"{one}.json").write_bytes((home / f"{other}.json").read_bytes())
    with pytest.raises(Corrupt, match=f"its manifest is that of {other}"):
        backups.describe(one)


def test_the_snapshot_of_another_backup_is_noticed(tmp_path: Path, backups: Backups, snapshot: SnapshotFile) -> None:
    one = backups.create(snapshot, at(1)).id
    with snapshot_of(tmp_path / "later", script(7)) as later:
        other = backups.create(later, at(2)).id
    home = tmp_path / "backups"
    content = (home / f"{other}.snapshot").read_bytes()
    size = (home / f"{one}.snapshot").stat().st_size
    (home / f"{one}.snapshot").write_bytes(content[:size].ljust(size, b"\0"))
    with pytest.raises(Corrupt, match="not those that were written"):
        backups.fetch(one, tmp_path / "copy")


def test_every_flipped_bit_and_every_cut_of_both_files_is_found(tmp_path: Path) -> None:
    """Each region of both, some thousand places; what is found is said by `fetch`, or by the list already."""
    backups, manifest = made(tmp_path)
    home, scratch = tmp_path / "backups", tmp_path / "scratch"
    random = Random(7)
    for name in (f"{manifest.id}.json", f"{manifest.id}.snapshot"):
        path = home / name
        whole = path.read_bytes()
        places = range(len(whole)) if len(whole) < 2_000 else [*range(200), *random.sample(range(len(whole)), 300)]
        for place in [*places, len(whole) - 1]:
            changed = bytearray(whole)
            changed[place] ^= 1 << random.randrange(8)
            path.write_bytes(changed)
            assert is_refused(backups, manifest, scratch) or decode_is_same(path, manifest), (name, place)
        for size in [0, 1, 31, 32, 33, len(whole) - 1, *random.sample(range(len(whole)), 20)]:
            path.write_bytes(whole[:size])
            assert is_refused(backups, manifest, scratch) or decode_is_same(path, manifest), (name, size)
        path.write_bytes(whole + b"\0" if name.endswith("snapshot") else whole + b"x")
        assert is_refused(backups, manifest, scratch)
        path.write_bytes(whole)
    assert backups.fetch(manifest.id, scratch) == manifest


def is_refused(backups: Backups, manifest: Manifest, scratch: Path) -> bool:
    scratch.unlink(missing_ok=True)
    try:
        backups.fetch(manifest.id, scratch)
    except (Corrupt, Refused):
        assert not scratch.exists()
        return True
    return False


def decode_is_same(path: Path, manifest: Manifest) -> bool:
    """What changed is the white space of the manifest alone."""
    return path.suffix == ".json" and decode(path.read_bytes(), manifest.id) == manifest


def test_a_snapshot_that_is_damaged_already_is_not_stored(
    tmp_path: Path, backups: Backups, snapshot: SnapshotFile
) -> None:
    content = bytearray(snapshot.path.read_bytes())
    content[len(content) // 2] ^= 1
    snapshot.path.write_bytes(content)
    with pytest.raises(Corrupt, match="not those that were written"):
        backups.create(snapshot, ABOUT)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_snapshot_that_was_sealed_with_rubbish_in_it_is_refused_by_validation(
    tmp_path: Path, backups: Backups, snapshot: SnapshotFile
) -> None:
    """Whoever made it had damage: the digest is right, what it is of is no state."""
    from conveyord.storage.state_store.packing import pack
    from conveyord.storage.state_store.schema import Place

    (tmp_path / "rubbish").write_bytes(b"no database" * 1_000)
    pack(tmp_path / "rubbish", tmp_path / "sealed", Place(snapshot.info.mark, VOTERS))
    with SnapshotFile(tmp_path / "sealed") as sealed:
        id_ = backups.create(sealed, ABOUT).id
    (tmp_path / "scratch").mkdir()
    with pytest.raises(Corrupt, match=f"backup {id_} is damaged: its bytes are those that were written, but"):
        validate(backups, id_, tmp_path / "scratch", expect_cluster=None, data_dir=None, force=False)


def test_the_state_of_a_newer_program_is_refused_with_both_versions(tmp_path: Path, backups: Backups) -> None:
    def add_table(database: Database) -> None:
        database.execute("CREATE TABLE later (x)")

    log = script()
    with closing(StateStore.open(tmp_path / "later", membership=VOTERS, migrations=(*MIGRATIONS, add_table))) as store:
        store.apply(log.entries, Executor().execute)
        store.snapshots.take()
        with store.snapshots.newest() as later:  # type: ignore[union-attr]
            id_ = backups.create(later, replace(ABOUT, version="9.1.0")).id
    (tmp_path / "scratch").mkdir()
    with pytest.raises(Refused, match=r"made by conveyord 9.1.0, this is \d.*migration 'add_table'.*does not know"):
        validate(backups, id_, tmp_path / "scratch", expect_cluster=None, data_dir=None, force=False)


# ------------------------------------------------------------------------------ places


@pytest.mark.parametrize(
    "url",
    ["/backups", "backups", "file://host/backups", "ftp://x/y", "s3://", "s3:///x", "file:///a?b", "file:///a#b", ""],
)
def test_what_is_no_place_for_backups_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"write file:///DIRECTORY"):
        open_backups(url, {})


def test_a_property_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="no property 's3.key'; there are s3.access-key-id"):
        open_backups("s3://bucket/x", {"s3.key": "x"})


@pytest.mark.parametrize("endpoint", ["", "host:9000", "nonsense://x", "http://", "http://host/bucket"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"s3.endpoint of the backups is '.*'; write https://HOST"):
        open_backups("s3://bucket/x", {"s3.endpoint": endpoint})


def test_half_of_the_credentials_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit together"):
        open_backups("s3://bucket/x", {"s3.access-key-id": "x", "s3.region": "x"}).list()


def test_a_place_may_have_blanks_and_letters_of_any_kind(tmp_path: Path, snapshot: SnapshotFile) -> None:
    backups = open_backups((tmp_path / "für den Notfall %20").as_uri(), {})
    id_ = backups.create(snapshot, ABOUT).id
    assert (tmp_path / "für den Notfall %20" / f"{id_}.json").exists()


def test_a_directory_that_is_not_there_is_refused_and_not_made(tmp_path: Path, backups: Backups) -> None:
    for ask in (backups.list, lambda: backups.describe("x"), lambda: backups.cleanup(keep=1)):
        with pytest.raises(Refused, match="No such file or directory; check the URL of the backups"):
            ask()
    assert not (tmp_path / "backups").exists()


def test_an_unknown_id_is_refused_with_those_that_look_alike(
    tmp_path: Path, backups: Backups, snapshot: SnapshotFile
) -> None:
    (tmp_path / "backups").mkdir()
    with pytest.raises(Refused, match="none is in this place"):
        backups.describe("20261122")
    id_ = backups.create(snapshot, ABOUT).id
    for wrong in (id_[:-1], "latest", "../x", f"{id_}.json", ""):
        with pytest.raises(Refused, match=f"did you mean {id_}"):
            backups.describe(wrong)
        with pytest.raises(Refused, match=f"did you mean {id_}"):
            backups.delete(wrong)


def test_a_file_that_the_disk_cannot_read_is_a_damaged_backup(
    monkeypatch: pytest.MonkeyPatch, backups: Backups, snapshot: SnapshotFile
) -> None:
    """And the others are listed."""
    ids = [backups.create(snapshot, at(second)).id for second in (2, 1)]
    part = DirectoryStore._part

    def failing(store: DirectoryStore, file: object, path: Path) -> bytes:
        if path.name == f"{ids[0]}.json":
            file = Unreadable()
        return part(store, file, path)  # type: ignore[arg-type]

    monkeypatch.setattr(DirectoryStore, "_part", failing)
    first, second = backups.list()
    assert (first.id, second.manifest is not None) == (ids[0], True)
    assert "the disk cannot read it (Input/output error)" in (first.fault or "")


class Unreadable:
    def read(self, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


def test_what_others_keep_there_is_not_touched(tmp_path: Path, snapshot: SnapshotFile) -> None:
    home = tmp_path / "backups"
    backups = Backups(DirectoryStore(str(home)), now_seconds=lambda: 4e9)
    id_ = backups.create(snapshot, ABOUT).id
    strangers = {"notes.json", "x.snapshot", "20261122.json", f"{id_}.json.bak", f"{id_}.txt"}
    for name in strangers:
        (home / name).write_bytes(b"mine")
    (home / "20261122T083015124Z-000000000012-abcdef.json.d").mkdir()
    assert [one.id for one in backups.list()] == [id_]
    assert backups.cleanup(keep=1) == ()
    assert strangers <= {path.name for path in home.iterdir()}


def test_leftovers_of_an_upload_go_when_they_are_a_day_old(tmp_path: Path, snapshot: SnapshotFile) -> None:
    home, now = tmp_path / "backups", 2_000_000_000
    backups = Backups(DirectoryStore(str(home)), now_seconds=lambda: now)
    whole = backups.create(snapshot, ABOUT).id
    other = "20261122T083015124Z-000000000013-abcdef"
    late = f"{whole}.snapshot.1234abcd.tmp"
    old = (f"{other}.snapshot", f"{other}.json.1234abcd.tmp", f"{other}.json.tmp")
    for name, age in (*((name, 1) for name in old), (late, -1)):
        (home / name).write_bytes(b"")
        os.utime(home / name, times=(0, now - LEFTOVER_SECONDS - age))
    assert [one.id for one in backups.list()] == [whole]
    assert backups.cleanup(keep=1) == ()
    assert {path.name for path in home.iterdir()} == {f"{whole}.json", f"{whole}.snapshot", late}


def test_the_same_backup_may_be_written_twice_at_a_time(tmp_path: Path) -> None:
    """Two are asked for within a millisecond, of the same state: they have one id."""
    store = DirectoryStore(str(tmp_path))

    def parts() -> Iterator[bytes]:
        yield b"its "
        store.write("name", [b"its content"])
        yield b"content"

    store.write("name", parts())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"name": b"its content"}


STEPS = [(directory_store, name) for name in ("write_all", "sync_directory", "make_durable_directories")] + [
    (Path, "rename"),
    (Path, "unlink"),
    (os, "fsync"),
]


@pytest.mark.parametrize("what", ["create", "delete", "cleanup"])
def test_a_crash_anywhere_leaves_whole_backups_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotFile, what: str
) -> None:
    at_step, done = 0, False
    while not done:
        home = tmp_path / f"backups-{at_step}"
        backups = Backups(DirectoryStore(str(home)), now_seconds=lambda: 4e9)
        ids = [backups.create(snapshot, at(second)).id for second in (1, 2)]
        with crashing(monkeypatch, STEPS, at_step):
            try:
                match what:
                    case "create":
                        backups.create(snapshot, at(3))
                    case "delete":
                        backups.delete(ids[0])
                    case _:
                        backups.cleanup(keep=1)
                done = True
            except Crashed:
                pass
        listed = backups.list()
        assert all(one.manifest is not None for one in listed), listed
        for one in listed:
            backups.fetch(one.id, tmp_path / "copy")
        assert ids[1] in {one.id for one in listed}
        backups.cleanup(keep=9)
        names = {path.name for path in home.iterdir()}
        assert names == {f"{one.id}.{kind}" for one in backups.list() for kind in ("json", "snapshot")}
        at_step += 1
    assert at_step >= (8 if what == "create" else 3)


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        (errno.ENOSPC, StorageFull, "free space, or remove old backups"),
        (errno.EACCES, Refused, "let the user of this process read and write"),
        (errno.EROFS, Refused, "on a disk that is mounted writable"),
        (errno.EIO, Retryable, "check the disk"),
    ],
)
def test_a_disk_that_takes_nothing_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backups: Backups,
    snapshot: SnapshotFile,
    code: int,
    error: type[Exception],
    told: str,
) -> None:
    with failing(monkeypatch, code), pytest.raises(error, match=told):
        backups.create(snapshot, ABOUT)
    assert list((tmp_path / "backups").iterdir()) == []


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, code: int) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(directory_store, "write_all", fail)
        yield


def test_a_cluster_that_was_not_formed_has_no_backup(backups: Backups, snapshot: SnapshotFile) -> None:
    with pytest.raises(Refused, match="make one once the cluster is formed"):
        backups.create(snapshot, replace(ABOUT, cluster=""))


# ------------------------------------------------------------------------------ manifests


texts = st.text(st.characters(codec="utf-8"), max_size=80)
manifests = st.builds(
    Manifest,
    format=st.just(1),
    id=st.just("20261122T083015123Z-000000000012-abcdef"),
    cluster=texts,
    history=texts,
    index=st.integers(1, 2**63 - 1),
    term=st.integers(0, 2**63 - 1),
    chain=texts,
    voters=st.lists(texts).map(tuple),
    learners=st.lists(texts).map(tuple),
    protocol=st.integers(0, 2**63 - 1),
    version=texts,
    created_at_ms=st.integers(0, 2**63 - 1),
    by=texts,
    file_bytes=st.integers(0, 2**63 - 1),
    state_bytes=st.integers(0, 2**63 - 1),
    digest=texts,
)


@given(manifests)
def test_a_manifest_reads_as_it_was_written(manifest: Manifest) -> None:
    assert decode(encode(manifest), manifest.id) == manifest


@given(manifests, st.data())
def test_a_manifest_that_was_changed_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    content = bytearray(encode(manifest))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(bytes(content), manifest.id)
    except (Corrupt, Refused):
        return
    assert found == manifest, "white space at most"


@given(st.binary(min_size=32, max_size=400), st.lists(st.integers(1, 90), min_size=1))
def test_bytes_are_passed_on_as_they_are_however_they_are_cut(content: bytes, sizes: list[int]) -> None:
    from hashlib import blake2b

    body = content[:-32]
    digest = blake2b(body, digest_size=32).digest()
    info = SnapshotInfo(None, None, 0, len(content), digest)  # type: ignore[arg-type]
    manifest = Manifest(
        format=1, id="x", cluster="", history="", index=1, term=1, chain="", voters=(), learners=(), protocol=1,
        version="", created_at_ms=0, by="", file_bytes=info.file_bytes, state_bytes=0, digest=digest.hex(),
    )  # fmt: skip

    def parts(whole: bytes) -> Iterator[bytes]:
        at, number = 0, 0
        while at < len(whole):
            size = sizes[number % len(sizes)]
            yield whole[at : at + size]
            at, number = at + size, number + 1

    whole = body + digest
    assert b"".join(checked(parts(whole), manifest)) == whole
    for wrong in (whole[:-1], whole + b"x", b"", body + bytes(32), bytes([whole[0] ^ 1]) + whole[1:]):
        if wrong != whole:
            with pytest.raises(Corrupt, match="backup x is damaged"):
                list(checked(parts(wrong), manifest))
