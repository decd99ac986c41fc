"""Files of a log that are not what was written are moved aside as they are, and never read as a shorter log."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest

from conveyord.core.errors import Refused
from conveyord.core.raft.types import Entry, Mark
from conveyord.storage.raft_log import watermark
from conveyord.storage.raft_log.quarantine import MOVING, Quarantined
from conveyord.storage.raft_log.wal import FRAME, HEADER
from tests.storage.raft_log_rig import EVERYTHING, Model, appended, contents, entries_after, found, opened

PAGE_BYTES = 4096
FRAME_BYTES = FRAME.size + PAGE_BYTES
FLIPS = 100
FILES = ("raft.db", "raft.db-wal", "raft.db-wal", "raft.db-watermark")
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A directory in memory, as hundreds of copies are made there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def whole(memory: Path) -> tuple[Path, Model]:
    """A log with checkpointed entries, and transactions of 20 entries in its write-ahead log. Not to be changed."""
    directory, model = memory / "whole", Model()
    log = opened(directory)
    log.load(0)
    for number in range(30):
        appended(log, model, [200] * 20)
        if number == 15:
            log.close()
            log = opened(directory)
            log.load(0)
    log.close()
    return directory, model


@pytest.fixture
def copy(whole: tuple[Path, Model], memory: Path) -> Iterator[tuple[Path, Model]]:
    yield Path(shutil.copytree(whole[0], memory / "log")), whole[1]
    shutil.rmtree(memory / "log")


def overwritten(directory: Path, name: str, offset: int, content: bytes) -> None:
    with (directory / name).open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flipped(directory: Path, name: str, offset: int, bit: int = 0) -> None:
    (before,) = (directory / name).read_bytes()[offset : offset + 1]
    overwritten(directory, name, offset, bytes([before ^ (1 << bit)]))


def cut(directory: Path, name: str, size: int) -> None:
    os.truncate(directory / name, size)


def changed(directory: Path, sql: str) -> None:
    """By somebody with another SQLite, who knows what he does."""
    connection = sqlite3.connect(directory / "raft.db")
    connection.execute(sql)
    connection.commit()
    connection.close()


def power_cut(directory: Path) -> None:
    """The watermark never reached the disk."""
    (directory / "raft.db-watermark").write_bytes(watermark._encoded(1))


def settled(damage: Damage) -> Damage:
    """To a log whose write-ahead log is empty: what is in that one hides the pages below."""

    def done(directory: Path) -> None:
        found(directory)
        damage(directory)

    return done


CORPUS: dict[str, Damage] = {
    "the file is gone": lambda path: (path / "raft.db").unlink(),
    "the file is empty": partial(cut, name="raft.db", size=0),
    "the file is cut in its first page": settled(partial(cut, name="raft.db", size=1000)),
    "the file is cut after its first page": settled(partial(cut, name="raft.db", size=PAGE_BYTES)),
    "the file is cut in the middle": settled(partial(cut, name="raft.db", size=8 * PAGE_BYTES)),
    "the file is something else": settled(partial(overwritten, name="raft.db", offset=0, content=b"no database" * 9)),
    "the first page is zeroed": settled(partial(overwritten, name="raft.db", offset=0, content=bytes(PAGE_BYTES))),
    "a page of entries is zeroed": partial(
        overwritten, name="raft.db", offset=5 * PAGE_BYTES, content=bytes(PAGE_BYTES)
    ),
    "the write-ahead log is gone": lambda path: (path / "raft.db-wal").unlink(),
    "the write-ahead log is empty": partial(cut, name="raft.db-wal", size=0),
    "the write-ahead log is cut": partial(cut, name="raft.db-wal", size=HEADER.size + 9 * FRAME_BYTES),
    "the write-ahead log has lost its last bytes": lambda path: cut(
        path, "raft.db-wal", (path / "raft.db-wal").stat().st_size - 10
    ),
    "the head of the write-ahead log is flipped": partial(flipped, name="raft.db-wal", offset=17),
    "a frame is flipped": partial(flipped, name="raft.db-wal", offset=HEADER.size + 4 * FRAME_BYTES + 500),
    "a frame is zeroed": partial(
        overwritten, name="raft.db-wal", offset=HEADER.size + 9 * FRAME_BYTES, content=bytes(FRAME_BYTES)
    ),
    "the last frame is flipped": lambda path: flipped(path, "raft.db-wal", (path / "raft.db-wal").stat().st_size - 10),
    "an entry is deleted": partial(changed, sql='DELETE FROM entries WHERE "index" = 77'),
    "the last entry is deleted": partial(changed, sql='DELETE FROM entries WHERE "index" = 600'),
    "an entry too many": partial(
        changed, sql='INSERT INTO entries SELECT 601, term, kind, crc, chain, data FROM entries WHERE "index" = 600'
    ),
    "an entry has other data": partial(changed, sql="UPDATE entries SET data = x'00' WHERE \"index\" = 7"),
    "an entry has another term": partial(changed, sql='UPDATE entries SET term = 0 WHERE "index" = 7'),
    "an entry has another chain": partial(changed, sql="UPDATE entries SET chain = x'0102' WHERE \"index\" = 7"),
    "the vote is another": partial(changed, sql="UPDATE head SET vote = 'n3'"),
    "the term is another": partial(changed, sql="UPDATE head SET term = 0"),
    "the base is another": partial(changed, sql="UPDATE head SET base_index = 5"),
    "the head is gone": partial(changed, sql="DELETE FROM head"),
    "the head is there twice": partial(changed, sql="INSERT INTO head SELECT * FROM head"),
    "the table is gone": partial(changed, sql="DROP TABLE entries"),
    "the watermark is empty": partial(cut, name="raft.db-watermark", size=0),
    "the watermark is cut": partial(cut, name="raft.db-watermark", size=19),
    "the watermark is flipped": partial(flipped, name="raft.db-watermark", offset=9),
    "the watermark is something else": lambda path: (path / "raft.db-watermark").write_bytes(b"junk"),
}


@pytest.mark.parametrize("damage", CORPUS)
def test_a_damaged_log_is_moved_aside_as_it_is(copy: tuple[Path, Model], damage: str) -> None:
    directory, _ = copy
    CORPUS[damage](directory)
    names = {path.name for path in directory.iterdir()} - {"lock", "raft.db-reserve"}
    before = {name: (directory / name).read_bytes() for name in names}
    with pytest.raises(Quarantined) as caught:
        found(directory)
    assert {name: (directory / "quarantine-1" / name).read_bytes() for name in names} == before
    assert not names & {path.name for path in directory.iterdir()}
    assert caught.value.code == "QUARANTINED"
    assert "quarantine-1" in str(caught.value) and "new node id" in str(caught.value)


def test_whatever_bit_flips_a_log_is_whole_or_refused(whole: tuple[Path, Model], memory: Path) -> None:
    directory, model = whole
    assert noticed(directory, model, memory / "hurt", partial(any_bit, Random(1)), times=FLIPS) > FLIPS / 2


@pytest.mark.check
def test_whichever_of_thousands_of_bits_flips_a_log_is_whole_or_refused(
    whole: tuple[Path, Model], memory: Path
) -> None:
    directory, model = whole
    assert noticed(directory, model, memory / "hurt", partial(any_bit, Random(2)), times=1000) > 400
    at_rest = Path(shutil.copytree(directory, memory / "at-rest"))
    found(at_rest)  # so that nothing is in the write-ahead log
    assert noticed(at_rest, model, memory / "hurt", partial(any_bit, Random(3), names=("raft.db",)), times=500) > 150


def any_bit(random: Random, directory: Path, names: tuple[str, ...] = FILES) -> None:
    name = random.choice(names)
    offset = random.randrange(random.choice((100, PAGE_BYTES, 1 << 40)))
    flipped(directory, name, offset % (directory / name).stat().st_size, random.randrange(8))


@pytest.mark.parametrize("way", ["older", "zeroed", "another"])
def test_whichever_pages_a_disk_did_not_write_or_wrote_elsewhere_a_log_is_whole_or_refused(
    memory: Path, way: str
) -> None:
    home, model = memory / way, Model()
    log = opened(home)
    log.load(0)
    appended(log, model, [200] * 100, term=3)
    log.compact(model.mark(30), model.members)
    model.compact(model.mark(30), model.members)
    log.close()
    assert found(home) == model.contents()
    older = (home / "raft.db").read_bytes()
    log = opened(home)
    log.load(0)
    for _ in range(4):
        appended(log, model, [200] * 20, term=3)
    log.compact(model.mark(60), model.members)
    model.compact(model.mark(60), model.members)
    log.close()
    assert found(home) == model.contents()
    pages = range((home / "raft.db").stat().st_size // PAGE_BYTES)
    random = Random(4)

    def hurt(directory: Path) -> None:
        for page in random.sample(pages, random.choice((1, 1, 2, 5))):
            source = {"older": older, "zeroed": b"", "another": (directory / "raft.db").read_bytes()}[way]
            taken = (page if way == "older" else random.choice(pages)) * PAGE_BYTES
            content = source[taken : taken + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
            overwritten(directory, "raft.db", page * PAGE_BYTES, content)

    assert noticed(home, model, memory / "hurt", hurt, times=100) > 50


def noticed(whole: Path, model: Model, copy: Path, hurt: Damage, *, times: int) -> int:
    """How often it was noticed. What was not has hit what is not used, or only what protects."""
    count = 0
    for _ in range(times):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        hurt(copy)
        try:
            assert found(copy) == model.contents()
        except (Quarantined, Refused):
            count += 1
    return count


def frames_of_transactions(wal: bytes) -> Iterator[tuple[int, int]]:
    """The first frame of each transaction, and the frame after its last."""
    first = 0
    for frame in range((len(wal) - HEADER.size) // FRAME_BYTES):
        _, ends, *_ = FRAME.unpack_from(wal, HEADER.size + frame * FRAME_BYTES)
        if ends:
            yield first, frame + 1
            first = frame + 1


class TestAfterAPowerCut:
    """The watermark may be behind then; what else is there must tell."""

    def test_damage_before_the_last_write_is_noticed(self, whole: tuple[Path, Model], memory: Path) -> None:
        wal = (whole[0] / "raft.db-wal").read_bytes()
        writes = list(frames_of_transactions(wal))
        assert len(writes) == 14
        random = Random(3)
        for number, (first, end) in enumerate(writes[:-1]):
            directory = Path(shutil.copytree(whole[0], memory / f"cut-{number}"))
            power_cut(directory)
            frame = HEADER.size + random.randrange(first, end) * FRAME_BYTES
            flipped(directory, "raft.db-wal", frame + random.randrange(FRAME_BYTES), random.randrange(8))
            with pytest.raises(Quarantined, match="write-ahead log is damaged"):
                found(directory)

    def test_damage_to_the_head_of_the_write_ahead_log_is_noticed(self, copy: tuple[Path, Model]) -> None:
        power_cut(copy[0])
        flipped(copy[0], "raft.db-wal", 13)
        with pytest.raises(Quarantined, match="head of its write-ahead log"):
            found(copy[0])

    def test_damage_to_the_last_write_of_all_is_not_told_from_a_crash_before_it(self, copy: tuple[Path, Model]) -> None:
        """What cannot be had with one sync a write. docs/raft-log.md says so."""
        directory, model = copy
        power_cut(directory)
        flipped(directory, "raft.db-wal", (directory / "raft.db-wal").stat().st_size - 10)
        assert found(directory)[4] == tuple(model.entries[:580])


def test_an_older_copy_of_the_files_is_noticed(tmp_path: Path) -> None:
    log, model = opened(tmp_path), Model()
    log.load(0)
    appended(log, model, [10])
    log.close()
    log = opened(tmp_path)
    log.load(0)
    older = (tmp_path / "raft.db").read_bytes()
    appended(log, model, [10])
    log.close()
    (tmp_path / "raft.db").write_bytes(older)
    cut(tmp_path, "raft.db-wal", 0)
    with pytest.raises(Quarantined, match="the last ones are lost"):
        found(tmp_path)


def test_a_log_that_ends_before_what_the_state_has_applied_is_noticed(copy: tuple[Path, Model]) -> None:
    log = opened(copy[0])
    with pytest.raises(Quarantined, match="has applied entry 601"):
        log.load(601)


def test_without_its_watermark_a_whole_log_is_still_one(copy: tuple[Path, Model]) -> None:
    directory, model = copy
    (directory / "raft.db-watermark").unlink()
    assert found(directory) == model.contents()
    cut(directory, "raft.db", 0)
    with pytest.raises(Quarantined):
        found(directory)


class TestQuarantine:
    """What becomes of a node whose log was moved aside."""

    def test_its_name_is_spent_here_until_somebody_moves_the_quarantine_away(self, copy: tuple[Path, Model]) -> None:
        directory, _ = copy
        cut(directory, "raft.db", 0)
        for _ in range(3):
            with pytest.raises(Quarantined, match="missing or empty"):
                found(directory)
        assert [path.name for path in directory.glob("quarantine-*")] == ["quarantine-1"]
        log = opened(directory, node="n1-again")
        assert contents(log.load(0)) == Model().contents()
        log.close()

    def test_a_second_one_is_put_beside_the_first(self, copy: tuple[Path, Model]) -> None:
        directory, _ = copy
        for node in ("n1", "n2"):
            opened(directory, node=node).close()
            (directory / "raft.db").unlink()
            with pytest.raises(Quarantined):
                opened(directory, node=node)
        assert sorted(path.name for path in directory.glob("quarantine-*")) == ["quarantine-1", "quarantine-2"]

    @pytest.mark.parametrize("moved", [0, 1, 2, 3])
    def test_a_move_that_a_crash_cut_short_is_ended(self, copy: tuple[Path, Model], moved: int) -> None:
        directory, _ = copy
        folder = directory / "quarantine-1"
        folder.mkdir()
        (folder / MOVING).write_text("n1\nit was flipped\n")
        for name in ("raft.db", "raft.db-wal", "raft.db-watermark")[:moved]:
            (directory / name).rename(folder / name)
        with pytest.raises(Quarantined, match="it was flipped"):
            opened(directory)
        assert not list(directory.glob("raft.db-w*")) and not (directory / "raft.db").exists()

    def test_what_a_crash_left_of_a_move_is_nothing_of_the_next_node(self, copy: tuple[Path, Model]) -> None:
        directory, _ = copy
        folder = directory / "quarantine-1"
        folder.mkdir()
        (folder / MOVING).write_text("n1\nit was flipped\n")
        (directory / "raft.db").rename(folder / "raft.db")
        log = opened(directory, node="n2")
        assert contents(log.load(0)) == Model().contents()
        log.close()
        assert (folder / "raft.db-wal").exists()

    def test_what_is_found_while_it_runs_ends_it_as_well(self, copy: tuple[Path, Model]) -> None:
        directory, model = copy
        log = opened(directory)
        log.load(0)
        overwritten(directory, "raft.db", 3 * PAGE_BYTES, os.urandom(20 * PAGE_BYTES))
        log._connection.execute("PRAGMA shrink_memory")
        with pytest.raises(Quarantined):
            log.read(1, 600, EVERYTHING)
        with pytest.raises(Refused, match="moved aside"):
            appended(log, model, [1])
        assert (directory / "quarantine-1" / "raft.db").exists()


def test_terms_that_fall_are_noticed(tmp_path: Path) -> None:
    log, model = opened(tmp_path), Model()
    log.load(0)
    appended(log, model, [1], term=4)
    falling: tuple[Entry, ...] = entries_after(model.end, 3, [1])
    appended(log, model, [], entries=falling)
    log.close()
    with pytest.raises(Quarantined, match="has term 3, the one before it 4"):
        found(tmp_path)


def test_entries_of_a_term_that_the_node_does_not_know_are_noticed(tmp_path: Path) -> None:
    log, model = opened(tmp_path), Model()
    log.load(0)
    appended(log, model, [], entries=entries_after(Mark(), 9, [1]))
    log.close()
    with pytest.raises(Quarantined, match="has term 9, but the node's own is"):
        found(tmp_path)
