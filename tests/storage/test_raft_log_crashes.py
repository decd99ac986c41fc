"""The power is cut at every point of a log's life: what was acknowledged is there, and nothing was invented."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from conveyord.storage.raft_log import database, watermark, writing
from conveyord.storage.raft_log import log as raft_log
from conveyord.storage.raft_log.quarantine import Quarantined
from conveyord.storage.raft_log.wal import FRAME
from tests.storage.raft_log_rig import Contents, Model, contents, found, model_of, next_step, opened
from tests.storage.vfs_recorder import Disk, Recorder

REOPENED_SHARE = 0.1
SPILLING_SEED = 1  # the first whose life has a transaction that is too large for a little cache
EARLY = watermark.Watermark.raise_to


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, as thousands of images are made there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short run has many checkpoints and sweeps."""
    monkeypatch.setattr(raft_log, "CHECKPOINT_PAGES", 12)
    monkeypatch.setattr(writing, "SWEEP_ENTRIES", 5)


@pytest.fixture(params=["much cache", "little cache"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With little of it, SQLite would like to write frames of a transaction before its end."""
    if request.param == "little cache":
        monkeypatch.setattr(database, "SETTINGS", (*database.SETTINGS, "cache_size = 8"))


def lived(directory: Path, random: Random, steps: int, model: Model) -> tuple[Recorder, list[Contents]]:
    """A recorded life of a log. The marks among the events say which of the contents was acknowledged last."""
    name = f"recorder-{random.random()}"
    recorder = Recorder(name, directory)
    history = [model.contents()]
    with recorder.recording():
        log = opened(directory, vfs=name)
        assert contents(log.load(0, window_bytes=1 << 40)) == history[0]
        for _ in range(steps):
            if random.random() < REOPENED_SHARE:
                log.close()
                log = opened(directory, vfs=name)
                log.load(0)
            step = next_step(random, model)
            history.append(model.contents())
            recorder.mark(f"begun {len(history) - 1}")
            step(log)
            recorder.mark(f"done {len(history) - 1}")
        log.close()
    recorder.unregister()
    return recorder, history


def images(
    recorder: Recorder, random: Random, *, chances: int, every: int
) -> Iterator[tuple[dict[str, bytes], int, int]]:
    """What a cut can leave, with the first and the last of the contents that are right then. Each image once."""
    disk, done, begun, seen = Disk(recorder.start), 0, 0, set[int]()
    for number, (event, following) in enumerate(zip(recorder.events, [*recorder.events[1:], None], strict=True)):
        if event.what == "mark":
            what, at = event.name.split()
            done, begun = (int(at), int(at)) if what == "done" else (done, int(at))
        else:
            disk.take(event)
        if number % every and "sync" not in (event.what, following and following.what):
            continue
        for choice in (False, True, *[random] * chances):
            image = disk.image(choice)
            digest = hash((done, *sorted(image.items())))
            if digest not in seen:
                seen.add(digest)
                yield image, done, begun


def put(image: dict[str, bytes], directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in image.items():
        (directory / name).write_bytes(content)


def survey(recorder: Recorder, history: list[Contents], random: Random, memory: Path, **how: int) -> int:
    count = 0
    for image, done, begun in images(recorder, random, **how):
        put(image, memory / "image")
        assert found(memory / "image") in history[done : begun + 1]
        count += 1
    return count


@pytest.mark.usefixtures("cache")
def test_after_a_crash_anywhere_a_log_is_what_was_acknowledged(memory: Path) -> None:
    random = Random(1)
    recorder, history = lived(memory / "log", random, 25, Model())
    assert survey(recorder, history, random, memory, chances=1, every=20) > 100


@pytest.mark.check
@pytest.mark.usefixtures("cache")
def test_after_any_of_thousands_of_crashes_a_log_is_what_was_acknowledged(memory: Path) -> None:
    count = 0
    for seed in range(100, 103):
        random = Random(seed)
        shutil.rmtree(memory / "log", ignore_errors=True)
        recorder, history = lived(memory / "log", random, 40, Model())
        count += survey(recorder, history, random, memory, chances=3, every=4)
    assert count > 1500


def crash_of_a_crash(random: Random, memory: Path, *, rounds: int, chances: int, every: int) -> int:
    """A log lives on what a crash left, and crashes again."""
    count = 0
    shutil.rmtree(memory / "log", ignore_errors=True)
    (memory / "log").mkdir()
    model = Model()
    for _ in range(rounds):
        recorder, history = lived(memory / "log", random, 6, model)
        left = list(images(recorder, random, chances=chances, every=every))
        for image, done, begun in left:
            put(image, memory / "image")
            assert found(memory / "image") in history[done : begun + 1]
            count += 1
        image, *_ = random.choice(left)
        put(image, memory / "image")
        model = model_of(found(memory / "image"))
        put(image, memory / "log")
    return count


def test_after_crash_upon_crash_a_log_is_what_was_acknowledged(memory: Path) -> None:
    assert crash_of_a_crash(Random(3), memory, rounds=6, chances=1, every=20) > 50


@pytest.mark.check
@pytest.mark.usefixtures("cache")
def test_after_hundreds_of_crashes_upon_crashes_a_log_is_what_was_acknowledged(memory: Path) -> None:
    assert crash_of_a_crash(Random(4), memory, rounds=25, chances=2, every=5) > 800


@pytest.mark.soak
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("seed", range(5000, 5200))
def test_whatever_the_seed_after_crash_upon_crash_a_log_is_what_was_acknowledged(seed: int, memory: Path) -> None:
    """The first run of these found what `cache_spill = OFF` is for."""
    assert crash_of_a_crash(Random(seed), memory, rounds=12, chances=3, every=3) > 100


def pages_written_twice(recorder: Recorder) -> int:
    """In one transaction, which ends with a sync."""
    count, seen = 0, set[int]()
    for event in recorder.events:
        if event.name == "raft.db-wal" and event.what == "sync":
            seen.clear()
        elif event.name == "raft.db-wal" and len(event.data) == FRAME.size:
            (page, *_) = FRAME.unpack(event.data)
            count += page in seen
            seen.add(page)
    return count


@pytest.mark.parametrize(("setting", "is_right"), [("cache_spill = OFF", True), ("cache_spill = 8", False)])
def test_a_transaction_has_each_page_once_in_the_write_ahead_log(
    memory: Path, monkeypatch: pytest.MonkeyPatch, setting: str, is_right: bool
) -> None:
    """So that a page that comes twice after a crash shows two transactions. A run that found it otherwise is kept."""
    monkeypatch.setattr(database, "SETTINGS", (*database.SETTINGS, "cache_size = 8", setting))
    recorder, _ = lived(memory / "log", Random(SPILLING_SEED), 40, Model())
    assert (pages_written_twice(recorder) == 0) is is_right


class TestTheProofItself:
    """Each of these is a log that is wrong in one way; the images must show it."""

    def test_without_syncs_a_log_is_not_what_was_acknowledged(
        self, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "SETTINGS", ("locking_mode = EXCLUSIVE", "synchronous = OFF"))
        with pytest.raises((AssertionError, Quarantined)):
            crash_of_a_crash(Random(5), memory, rounds=6, chances=1, every=20)

    def test_a_watermark_that_is_early_shows_damage_where_none_is(
        self, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watermark.Watermark, "raise_to", lambda its, sequence: its._early(sequence + 1))
        monkeypatch.setattr(watermark.Watermark, "_early", EARLY, raising=False)
        with pytest.raises(Quarantined):
            crash_of_a_crash(Random(6), memory, rounds=6, chances=1, every=20)

    def test_frames_of_a_crash_that_are_written_over_look_like_damage(
        self, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(raft_log.RaftLog, "_checkpoint", lambda its, connection, mode: None)
        with pytest.raises((AssertionError, Quarantined)):
            crash_of_a_crash(Random(7), memory, rounds=60, chances=2, every=10)
