"""A disk that fails or fills: nothing is tried twice, nothing acknowledged is lost, and a full node can still vote."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest

from conveyord.core.errors import ConveyordError, OutcomeUnknown, Refused, Retryable, StorageFull
from conveyord.core.raft.messages import Write
from conveyord.core.raft.types import HardState
from conveyord.storage.raft_log import log as raft_log
from conveyord.storage.raft_log import watermark
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.raft_log.quarantine import Quarantined
from tests.storage.power_cut_rig import Disk
from tests.storage.raft_log_rig import EVERYTHING, RESERVE_BYTES, Model, appended, contents, found, next_step, opened

LITTLE_RESERVE_BYTES = 200_000


class Faulty(apsw.VFS):
    """A file system that fails when it is told to. fault: called with what is done to which file, before it is done."""

    def __init__(self, name: str) -> None:
        super().__init__(name, base="")
        self.name = name
        self.fault: Callable[[str, str, int], None] = lambda what, name, end: None

    def xOpen(self, name: Any, flags: list[int]) -> FaultyFile:
        return FaultyFile(self, name, flags)


class FaultyFile(apsw.VFSFile):
    def __init__(self, owner: Faulty, name: Any, flags: list[int]) -> None:
        self._owner = owner
        self._name = Path(name.filename() if isinstance(name, apsw.URIFilename) else name).name
        super().__init__("", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        self._owner.fault("read", self._name, offset + amount)
        return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:
        self._owner.fault("write", self._name, offset + len(data))
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._owner.fault("sync", self._name, 0)
        super().xSync(flags)


def failing(what: str, code: int) -> Callable[[str, str, int], None]:
    """what: such as `sync raft.db-wal`."""

    def fault(done: str, name: str, end: int) -> None:
        if f"{done} {name}" == what:
            raise io_error(code)

    return fault


def io_error(code: int) -> apsw.IOError:
    error = apsw.IOError()
    error.extendedresult = code
    return error


@dataclass
class Capacity:
    """A disk of so many bytes, for the files of one directory."""

    directory: Path
    bytes: int

    def __call__(self, done: str, name: str, end: int) -> None:
        sizes = {path.name: path.stat().st_size for path in self.directory.iterdir() if path.is_file()}
        grown = end - sizes.get(name, 0)
        if done == "write" and grown > 0 and sum(sizes.values()) + grown > self.bytes:
            raise apsw.FullError


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    vfs = Faulty("faulty")
    yield vfs
    vfs.unregister()


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def vote(log: RaftLog, model: Model) -> None:
    write = Write(0, HardState(model.hard_state.term + 1, "n2", model.last), None, (), None)
    log.write(write)
    model.write(write)


class TestAFullDisk:
    """`has_reserve` tells it, while there still is something left."""

    @pytest.fixture
    def log(self, faulty: Faulty, memory: Path) -> Iterator[RaftLog]:
        log = RaftLog(memory / "raft.db", node="n1", reserve_bytes=LITTLE_RESERVE_BYTES, vfs=faulty.name)
        log.load(0)
        faulty.fault = Capacity(memory, 500_000)
        yield log
        log.close()

    def test_the_write_that_finds_it_full_is_done_in_the_reserve_and_votes_after_it(
        self, log: RaftLog, memory: Path
    ) -> None:
        model = Model()
        assert log.has_reserve
        while log.has_reserve:
            appended(log, model, [1000] * 20)
        for _ in range(10):
            vote(log, model)
        log.close()
        assert found(memory) == model.contents()

    def test_when_the_reserve_is_used_up_nothing_is_written_any_more_and_nothing_is_lost(
        self, log: RaftLog, memory: Path
    ) -> None:
        model = Model()
        with pytest.raises(StorageFull, match="free space and run again"):
            while True:
                appended(log, model, [1000] * 20)
        assert not log.has_reserve
        with pytest.raises(Refused, match="an earlier write failed"):
            vote(log, model)
        log.close()
        assert found(memory) == model.contents()

    def test_a_write_that_not_even_the_reserve_can_take_leaves_no_trace(self, log: RaftLog, memory: Path) -> None:
        model = Model()
        appended(log, model, [10])
        with pytest.raises(StorageFull):
            appended(log, model, [10_000] * 100)
        log.close()
        assert found(memory) == model.contents()

    def test_the_reserve_is_made_anew_when_there_is_room(self, log: RaftLog, faulty: Faulty) -> None:
        model = Model()
        while log.has_reserve:
            appended(log, model, [1000] * 20)
        assert log.renew_reserve()
        assert log.has_reserve

    def test_without_room_for_twice_as_much_there_is_no_reserve(self, memory: Path) -> None:
        log = RaftLog(memory / "raft.db", node="n1", reserve_bytes=1 << 50)
        log.load(0)
        assert not log.has_reserve
        assert not log.renew_reserve()
        log.close()

    def test_a_checkpoint_that_finds_no_room_is_left_for_later(
        self, faulty: Faulty, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(raft_log, "CHECKPOINT_PAGES", 10)
        log, model = opened(memory, vfs=faulty.name), Model()
        log.load(0)

        def full(done: str, name: str, end: int) -> None:
            if (done, name) == ("write", "raft.db"):
                raise apsw.FullError

        faulty.fault = full
        for _ in range(20):
            appended(log, model, [200] * 20)
        assert not log.has_reserve
        faulty.fault = lambda done, name, end: None
        appended(log, model, [200] * 20)
        assert (memory / "raft.db").stat().st_size > 100_000
        log.close()
        assert found(memory) == model.contents()


class TestADiskThatFails:
    """The first error is the last: what a second sync says is worth nothing."""

    @pytest.mark.parametrize(
        ("what", "code"),
        [
            ("sync raft.db-wal", apsw.SQLITE_IOERR_FSYNC),
            ("write raft.db-wal", apsw.SQLITE_IOERR_WRITE),
            ("sync raft.db", apsw.SQLITE_IOERR_FSYNC),
            ("write raft.db", apsw.SQLITE_IOERR_WRITE),
        ],
    )
    def test_after_an_error_everything_is_refused(
        self, faulty: Faulty, memory: Path, what: str, code: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(raft_log, "CHECKPOINT_PAGES", 1)
        log, model = opened(memory, vfs=faulty.name), Model()
        log.load(0)
        appended(log, model, [200] * 20)
        before = model.contents()
        faulty.fault = failing(what, code)
        with pytest.raises(OutcomeUnknown, match="end this process, check the disk"):
            appended(log, model, [200])
        faulty.fault = lambda done, name, end: None
        for again in (lambda: vote(log, model), lambda: log.read(1, 2, 3), lambda: log.load(0), log.renew_reserve):
            with pytest.raises(Refused, match="an earlier write failed"):
                again()
        log.close()
        model.entries.append(before[4][-1])
        assert found(memory)[4][: len(before[4])] == before[4]

    def test_a_watermark_that_cannot_be_written_ends_it_too(
        self, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log, model = opened(memory), Model()
        log.load(0)

        def failed(its: watermark.Watermark, sequence: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(watermark.Watermark, "raise_to", failed)
        with pytest.raises(OutcomeUnknown):
            vote(log, model)
        with pytest.raises(Refused):
            vote(log, model)
        log.close()

    def test_a_page_that_cannot_be_read_is_damage(self, faulty: Faulty, memory: Path) -> None:
        log, model = opened(memory, vfs=faulty.name), Model()
        log.load(0)
        appended(log, model, [200] * 100)
        log.close()
        found(memory)  # so that nothing is in the write-ahead log

        def unreadable(done: str, name: str, end: int) -> None:
            if (done, name) == ("read", "raft.db") and end == 5 * 4096:
                raise io_error(apsw.SQLITE_IOERR_READ)

        faulty.fault = unreadable
        log = opened(memory, vfs=faulty.name)
        with pytest.raises(Quarantined):
            log.load(0)


@dataclass
class Nth:
    """Fails once, at the nth call of a kind."""

    what: str
    countdown: int
    error: Callable[[], Exception]
    happened: bool = field(default=False)

    def __call__(self, done: str, name: str, end: int) -> None:
        if done == self.what:
            self.countdown -= 1
            if self.countdown == 0:
                self.happened = True
                raise self.error()


ERRORS: dict[str, Callable[[], Exception]] = {
    "sync": lambda: io_error(apsw.SQLITE_IOERR_FSYNC),
    "write": lambda: io_error(apsw.SQLITE_IOERR_WRITE),
    "full": apsw.FullError,
}


def lives_until_the_fault(directory: Path, faulty: Faulty, fault: Nth, seed: int) -> None:
    """What was acknowledged is there afterwards; what failed is there as a whole or not at all."""
    random, model = Random(seed), Model()
    before = after = model.contents()
    faulty.fault = fault
    try:
        log = opened(directory, vfs=faulty.name)
        try:
            for _ in range(3):
                log.load(0)
                for _ in range(5):
                    step = next_step(random, model)
                    after = model.contents()
                    step(log)
                    before = after
                log.close()
                log = opened(directory, vfs=faulty.name)
        finally:
            log.close()
    except ConveyordError as error:
        assert isinstance(error, OutcomeUnknown | StorageFull | Retryable), repr(error)  # noqa: PT017 - none is fine too
    assert found(directory) in (before, after)


def every_fault(memory: Path, faulty: Faulty, monkeypatch: pytest.MonkeyPatch, *, kind: str, every: int) -> int:
    monkeypatch.setattr(raft_log, "CHECKPOINT_PAGES", 10)
    count, number = 0, 1
    while True:
        fault = Nth("sync" if kind == "sync" else "write", number, ERRORS[kind])
        lives_until_the_fault(memory / str(number), faulty, fault, seed=number % 3)
        if not fault.happened:
            return count
        count, number = count + 1, number + every


@pytest.mark.parametrize("kind", ERRORS)
def test_whichever_call_fails_nothing_acknowledged_is_lost(
    faulty: Faulty, memory: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert every_fault(memory, faulty, monkeypatch, kind=kind, every=5 if kind == "sync" else 29) > 5


@pytest.mark.check
@pytest.mark.parametrize("kind", ERRORS)
def test_whichever_of_all_calls_fails_nothing_acknowledged_is_lost(
    faulty: Faulty, memory: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert every_fault(memory, faulty, monkeypatch, kind=kind, every=1) > 30


@pytest.mark.check
def test_on_a_disk_that_is_really_full_a_log_votes_and_goes_on_when_there_is_room(disk: Disk) -> None:
    directory, model = disk.mount_point / "raft", Model()
    log = RaftLog(directory / "raft.db", node="n1", reserve_bytes=2 << 20)
    log.load(0)
    ballast = disk.mount_point / "ballast"
    for _ in range(3):
        with ballast.open("wb") as file, pytest.raises(OSError, match="No space left"):
            while True:  # until not one block is left
                file.write(bytes(4096))
                file.flush()
        while log.has_reserve:
            appended(log, model, [1000] * 20)
        for _ in range(50):
            vote(log, model)
        assert not log.renew_reserve()
        ballast.unlink()
        assert log.renew_reserve()
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(StorageFull):
        while True:
            appended(log, model, [1000] * 100)
    log.close()
    ballast.unlink()
    assert found(directory) == model.contents()


def test_the_rig_leaves_room_for_a_reserve(memory: Path) -> None:
    log = opened(memory)
    assert contents(log.load(0, window_bytes=EVERYTHING)) == Model().contents()
    assert log.has_reserve
    assert (memory / "raft.db-reserve").stat().st_size == RESERVE_BYTES
    log.close()
