"""`conveyord buffer`: what slow branches left on disk, shown and mended by the real process."""

from __future__ import annotations

from pathlib import Path

import pytest

from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage.locks import owned
from conveyord.storage.spill.budget import SpillBudget
from conveyord.storage.spill.frames import FrameMeta
from conveyord.storage.spill.names import queue_directory
from conveyord.storage.spill.queue import SpillQueue
from tests.e2e.harness import Ended, conveyord
from tests.storage.spill_rig import batch, files_of, flip, frames_of, segments

PIPELINE, EDGE = "shop/orders", "clean to archive"
NAME = f"{PIPELINE}/{EDGE}"
FRAMES = 9


@pytest.fixture
def directory(data_dir: Path) -> Path:
    """A queue of nine frames over two files, of which two are settled, in three segments."""
    path = queue_directory(data_dir, pipeline=PIPELINE, edge=EDGE)
    with SpillQueue.open(path, digest="a", budget=SpillBudget(10**9), segment_bytes=3_500) as queue:
        for value in range(FRAMES):
            span = Span(Partition("files", f"/in/{value % 2}.jsonl"), value // 2 * 10, value // 2 * 10 + 10)
            queue.append(FrameMeta((span,), Tally(read=10)), batch(value))
        queue.settle(2)
    return path


def buffer(data_dir: Path, *arguments: str) -> Ended:
    return conveyord("buffer", *arguments, "--data-dir", data_dir, cwd=data_dir.parent)


def test_a_listing_shows_every_queue(data_dir: Path, directory: Path) -> None:
    (shown,) = buffer(data_dir, "ls", "-o", "json").summary
    assert (shown["pipeline"], shown["edge"], shown["frames"], shown["health"]) == (PIPELINE, EDGE, 7, "ok")
    assert shown["bytes"] == sum(path.stat().st_size for path in segments(directory))
    assert shown["segments"] == 3
    assert 0 <= shown["age_seconds"] < 3600
    text = buffer(data_dir, "ls")
    assert (text.code, text.err) == (0, "")
    assert NAME in text.out and "ok" in text.out


def test_a_directory_without_queues_is_said_to_have_none(data_dir: Path) -> None:
    assert buffer(data_dir, "ls").out.startswith("no buffers in ")
    assert buffer(data_dir, "ls", "-o", "json").summary == []
    assert buffer(data_dir, "repair").out.startswith("no buffers in ")
    assert list(data_dir.iterdir()) == []


def test_an_inspection_shows_segments_and_what_is_covered(data_dir: Path, directory: Path) -> None:
    shown = buffer(data_dir, "inspect", NAME, "-o", "json").summary
    assert (shown["settled"], shown["last"], shown["frames"], shown["first_bad"]) == (2, FRAMES, 7, None)
    assert [segment["state"] for segment in shown["segments"]] == ["intact"] * 3
    covered = {span["partition"]["name"]: (span["first"], span["end"]) for span in shown["spans"]}
    assert covered == {"/in/0.jsonl": (10, 50), "/in/1.jsonl": (10, 40)}
    text = buffer(data_dir, "inspect", NAME)
    assert text.code == 0
    assert "files: /in/0.jsonl [10, 50)" in text.out


def test_the_first_bad_byte_is_named_and_nothing_changes(data_dir: Path, directory: Path) -> None:
    path = segments(directory)[1]
    start, _ = frames_of(path)[1]
    flip(path, start + 100)
    files = files_of(data_dir)
    ended = buffer(data_dir, "inspect", NAME, "-o", "json")
    assert ended.code == 1
    bad = ended.summary["first_bad"]
    assert (bad["segment"], bad["offset"]) == (path.name, start)
    text = buffer(data_dir, "inspect", NAME)
    assert f"first bad byte: {path.name}, byte {start}: " in text.out
    listed = buffer(data_dir, "ls", "-o", "json")
    assert (listed.code, listed.summary[0]["health"]) == (0, "ok"), "a listing reads headers alone"
    assert files_of(data_dir) == files


def test_damage_to_a_header_shows_in_the_listing(data_dir: Path, directory: Path) -> None:
    path = segments(directory)[1]
    flip(path, frames_of(path)[1][0] + 5)
    ended = buffer(data_dir, "ls", "-o", "json")
    assert (ended.code, ended.summary[0]["health"], ended.summary[0]["frames"]) == (1, "damaged", 3)


def test_a_torn_tail_is_no_damage(data_dir: Path, directory: Path) -> None:
    with segments(directory)[-1].open("ab") as file:
        file.write(b"CVFR")
    ended = buffer(data_dir, "ls", "-o", "json")
    assert (ended.code, ended.summary[0]["health"]) == (0, "torn")
    assert buffer(data_dir, "inspect", NAME).code == 0
    assert "cut 4 B" in buffer(data_dir, "repair").out


def test_a_repair_says_what_it_put_away_and_then_there_is_nothing_left_to_do(data_dir: Path, directory: Path) -> None:
    _, second, third = segments(directory)
    start, _ = frames_of(second)[1]
    flip(second, start + 100)
    (made,) = buffer(data_dir, "repair", NAME, "-o", "json").summary
    assert made["frames"] == 3
    assert [(each["segment"], each["offset"]) for each in made["quarantined"]] == [
        (second.name, start),
        (third.name, 0),
    ]
    assert all(Path(each["kept"]).is_file() for each in made["quarantined"])
    (listed,) = buffer(data_dir, "ls", "-o", "json").summary
    assert (listed["health"], listed["frames"], listed["quarantined_files"]) == ("ok", 3, 2)
    assert "in quarantine: " in buffer(data_dir, "inspect", NAME).out
    assert f"{NAME}: 3 frames kept\n" == buffer(data_dir, "repair").out


def test_a_repair_is_refused_while_a_pipeline_runs_and_looking_is_not(data_dir: Path, directory: Path) -> None:
    with owned(data_dir):
        files = files_of(data_dir)
        buffer(data_dir, "repair").failed("in use by process")
        assert buffer(data_dir, "ls").code == buffer(data_dir, "inspect", NAME).code == 0
        assert files_of(data_dir) == files


def test_a_queue_that_is_not_there_is_named_with_those_that_are(data_dir: Path, directory: Path) -> None:
    for verb in ("inspect", "repair"):
        buffer(data_dir, verb, "shop/orders/x").failed("there is no buffer 'shop/orders/x'", NAME, code=2)


def test_help_loads_nothing_heavy(data_dir: Path) -> None:
    ended = buffer(data_dir, "ls", "--help")
    assert "List all buffers" in ended.out
