"""Files that are followed: every whole line once, however they grow, are renamed, or the reader is restarted."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.core.errors import ConveyordError, RecordError, Refused
from conveyord.core.flow.positions import Partition, Positions
from conveyord.engine.contracts import OperatorContext, Source
from conveyord.operators.source_file_csv import FileCsvConfig, FileCsvSource
from conveyord.operators.source_file_jsonl import FileJsonlConfig, FileJsonlSource
from tests.engine.source_rig import Collector

POLL_SECONDS = 0.01
PATIENCE_SECONDS = 60.0  # a row that has not come by then never will


def source(pattern: Path, *, csv: bool = False, context: dict[str, Any] | None = None, **options: Any) -> Source:
    made = FileCsvSource if csv else FileJsonlSource
    config = (FileCsvConfig if csv else FileJsonlConfig)(
        path=str(pattern), follow=True, poll_every=f"{POLL_SECONDS}s", **options
    )
    threads = trio.CapacityLimiter(2)
    return made(config, OperatorContext("default/p", "in", pattern.parent, threads, **(context or {})))


class Reader:
    """A source at work."""

    def __init__(self) -> None:
        self.out = Collector()
        self.ended = trio.Event()

    @property
    def numbers(self) -> list[int]:
        return [row["n"] for row in self.out.rows]

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while not condition():
                assert not self.ended.is_set(), "the source has ended"
                await trio.sleep(POLL_SECONDS / 2)

    async def has_read(self, count: int) -> None:
        await self.until(lambda: len(self.out.rows) >= count)

    async def looks_again(self) -> None:
        """Give it time for some looks, so that what it must not do would be done."""
        await trio.sleep(5 * POLL_SECONDS)


@asynccontextmanager
async def following(made: Source, *fences: Positions) -> AsyncIterator[Reader]:
    """Run a source, and drain it at the end."""
    reader = Reader()

    async def run() -> None:
        await made.run(reader.out, fences=fences or (Positions(),), drain=reader.out.drain)
        reader.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield reader
        reader.out.drain.set()
        with trio.fail_after(PATIENCE_SECONDS):
            await reader.ended.wait()


async def failure(made: Source, *fences: Positions) -> ConveyordError:
    """What a source fails with, by and by."""
    out = Collector()
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(ConveyordError) as told:
        await made.run(out, fences=fences or (Positions(),), drain=out.drain)
    return told.value


def lines(*numbers: int) -> bytes:
    return b"".join(b'{"n":%d,"pad":"%s"}\n' % (n, b"x" * (n % 40)) for n in numbers)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as out:
        out.write(content)


# ------------------------------------------------------------------ growing


async def test_what_is_appended_and_what_is_new_comes_in_turn(tmp_path: Path) -> None:
    append(tmp_path / "a.jsonl", lines(0, 1))
    async with following(source(tmp_path / "*.jsonl")) as reader:
        await reader.has_read(2)
        append(tmp_path / "a.jsonl", lines(2))
        await reader.has_read(3)
        append(tmp_path / "b.jsonl", lines(3, 4))
        await reader.has_read(5)
        append(tmp_path / "a.jsonl", lines(5))
        await reader.has_read(6)
    assert reader.numbers == [0, 1, 2, 3, 4, 5]
    assert reader.out.expected_bytes is None


async def test_a_line_without_its_end_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append(path, lines(0) + lines(1)[:-5])
    async with following(source(path)) as reader:
        await reader.has_read(1)
        await reader.looks_again()
        append(path, lines(1)[-5:-1])
        await reader.looks_again()
        assert reader.numbers == [0]
        append(path, b"\n" + lines(2)[:-1])
        await reader.has_read(2)
    assert reader.numbers == [0, 1]
    assert [position.offset for position in reader.out.positions.values()] == [len(lines(0, 1))]
    # What is left over is read by a run that does not follow.
    made = FileJsonlSource(
        FileJsonlConfig(path=str(path)), OperatorContext("default/p", "in", tmp_path, trio.CapacityLimiter(1))
    )
    rest = Collector()
    await made.run(rest, fences=(reader.out.positions,), drain=rest.drain)
    assert [row["n"] for row in rest.rows] == [2]


async def test_a_csv_file_is_known_once_its_header_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append(path, b"n,tex")
    async with following(source(path, csv=True)) as reader:
        await reader.looks_again()
        append(path, b't\n1,"two\nlin')
        await reader.looks_again()
        append(path, b'es"\n2,x\n')
        await reader.has_read(2)
    assert reader.out.rows == [{"n": 1, "text": "two\nlines"}, {"n": 2, "text": "x"}]


async def test_a_run_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append(path, lines(*range(100)))
    async with following(source(path)) as first:
        await first.has_read(100)
    append(path, lines(*range(100, 150)))
    async with following(source(path), first.out.positions) as second:
        await second.has_read(50)
        append(path, lines(150))
        await second.has_read(51)
    assert first.numbers + second.numbers == list(range(151))


async def test_turning_follow_on_keeps_types_and_positions(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append(path, b'{"n":1,"x":1}\n')
    config = FileJsonlConfig(path=str(path))
    whole = Collector()
    context = OperatorContext("default/p", "in", tmp_path, trio.CapacityLimiter(1))
    await FileJsonlSource(config, context).run(whole, fences=(Positions(),), drain=whole.drain)
    append(path, b'{"n":2,"x":2.5}\n')
    async with following(source(path), whole.positions) as reader:
        await reader.has_read(1)
    assert reader.out.rows == [{"n": 2, "x": None, "x__double": 2.5}]


async def test_a_compressed_file_is_read_as_it_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(0, 1)[:-1]))
    async with following(source(tmp_path / "*")) as reader:
        await reader.has_read(2)
        append(tmp_path / "b.jsonl", lines(2))
        await reader.has_read(3)
    async with following(source(tmp_path / "*"), reader.out.positions) as again:
        append(tmp_path / "b.jsonl", lines(3))
        await again.has_read(1)
    assert reader.numbers + again.numbers == [0, 1, 2, 3]


async def test_a_bad_line_stops_behind_those_before_it(tmp_path: Path) -> None:
    append(tmp_path / "a.jsonl", lines(0) + b"{bad\n")
    error = await failure(source(tmp_path / "*"))
    assert isinstance(error, RecordError)
    async with following(source(tmp_path / "*", context={"skip_bad": True})) as reader:
        append(tmp_path / "a.jsonl", lines(1))
        await reader.has_read(2)
    assert reader.numbers == [0, 1]


# ------------------------------------------------------------------ renamed, replaced, truncated


async def test_a_renamed_file_is_finished_under_its_new_name(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    append(path, lines(0, 1))
    async with following(source(tmp_path / "log*")) as reader:
        await reader.has_read(2)
        append(path, lines(2))
        path.rename(old)
        append(path, lines(3))
        await reader.has_read(4)
        append(old, lines(4))
        append(path, lines(5))
        await reader.has_read(6)
    assert sorted(reader.numbers) == list(range(6))
    assert {partition.name for partition in reader.out.positions} == {str(path), f"{path}//1"}
    # While nobody reads it is renamed once more.
    old.rename(tmp_path / "log.2")
    path.rename(old)
    append(path, lines(6))
    append(old, lines(7))
    async with following(source(tmp_path / "log*"), reader.out.positions) as again:
        await again.has_read(2)
        await again.looks_again()
    assert sorted(again.numbers) == [6, 7]


async def test_rotated_csv_files_with_one_header_are_told_apart(tmp_path: Path) -> None:
    path, old = tmp_path / "a.csv", tmp_path / "a.csv.1"
    append(path, b"n\n")
    append(tmp_path / "b.csv", b"n\n0\n")
    async with following(source(tmp_path / "*", csv=True)) as reader:
        await reader.has_read(1)
    append(path, b"1\n")
    path.rename(old)
    append(path, b"n\n2\n")
    async with following(source(tmp_path / "*", csv=True), reader.out.positions) as again:
        await again.has_read(2)
        await again.looks_again()
    assert sorted(again.numbers) == [1, 2]


async def test_a_file_that_begins_like_the_one_before_it_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, lines(0))
    async with following(source(tmp_path / "log*")) as reader:
        await reader.has_read(1)
    append(path, lines(1))
    path.rename(tmp_path / "log.1")
    append(path, lines(0, 2))
    async with following(source(tmp_path / "log*"), reader.out.positions) as again:
        await again.has_read(3)
        await again.looks_again()
    assert sorted(again.numbers) == [0, 1, 2]
    assert again.out.positions[Partition("in", str(path))].offset == len(lines(0, 1))  # which now is log.1


@pytest.mark.parametrize("how", ["truncated", "shorter", "replaced"])
async def test_a_replaced_file_is_refused_unless_it_is_to_be_read_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.jsonl"
    append(path, lines(*range(300)))
    async with following(source(path)) as reader:
        await reader.has_read(300)
    content = {"truncated": lines(400), "shorter": lines(*range(200)), "replaced": lines(*range(400, 460))}[how]
    if how == "replaced":
        path.unlink()
    path.write_bytes(content)
    error = await failure(source(path), reader.out.positions)
    assert isinstance(error, Refused)
    assert str(path) in str(error) and "on_replaced: restart" in str(error)
    count = content.count(b"\n")
    async with following(source(path, on_replaced="restart"), reader.out.positions) as again:
        await again.has_read(count)
        append(path, lines(500))
        await again.has_read(count + 1)
    (partition,) = again.out.positions
    assert partition.name == f"{path}//1"
    both = Positions({**reader.out.positions, **again.out.positions})
    async with following(source(path), both) as third:
        append(path, lines(501))
        await third.has_read(1)
    assert third.numbers == [501]


async def test_a_file_that_is_saved_anew_with_more_in_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append(path, lines(0, 1))
    async with following(source(path)) as reader:
        await reader.has_read(2)
        (tmp_path / "new").write_bytes(lines(0, 1, 2))
        (tmp_path / "new").rename(path)
        await reader.has_read(3)
    assert reader.numbers == [0, 1, 2]
    assert len(reader.out.positions) == 1


async def test_files_that_go_away_are_no_error(tmp_path: Path) -> None:
    append(tmp_path / "a.jsonl", lines(0))
    async with following(source(tmp_path / "*.jsonl")) as reader:
        await reader.has_read(1)
        (tmp_path / "a.jsonl").unlink()
        await reader.looks_again()
        append(tmp_path / "b.jsonl", lines(1))
        await reader.has_read(2)
    assert reader.numbers == [0, 1]


# ------------------------------------------------------------------ anything in any order

OPERATIONS = st.sampled_from(["append", "half", "rotate", "restart", "read"])


class Logs:
    """Logs as programs write them: two of them, rotated by renaming, each line with a number of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole: list[int] = []
        self._count = 0
        self._half: dict[int, bytes] = {}  # by inode, the rest of a line that was begun
        append(self.path(0), b"")
        self.write(0)

    def path(self, log: int, generation: int = 0) -> Path:
        return self.folder / f"log{log}.{generation}"

    def write(self, log: int, *, half: bool = False) -> None:
        path = self.path(log)
        inode = path.stat().st_ino if path.exists() else -1
        if (rest := self._half.pop(inode, None)) is not None:
            append(path, rest)
            self.whole.append(int(rest.split(b"#")[1]))
        number, self._count = self._count, self._count + 1
        line = b'{"n":%d,"end":"#%d#"}\n' % (number, number)
        if half:
            append(path, line[:7])
            self._half[path.stat().st_ino] = line[7:]
        else:
            append(path, line)
            self.whole.append(number)

    def rotate(self, log: int) -> None:
        for generation in reversed(range(5)):
            if self.path(log, generation).exists():
                self.path(log, generation).rename(self.path(log, generation + 1))


@given(operations=st.lists(st.tuples(OPERATIONS, st.integers(0, 1)), min_size=1, max_size=12))
@settings(max_examples=40)
def test_every_whole_line_is_read_once_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]]
) -> None:
    logs = Logs(tmp_path_factory.mktemp("logs"))

    async def main() -> None:
        positions, numbers = Positions(), []
        pending = list(operations)
        while pending or sorted(numbers) != sorted(logs.whole):
            async with following(source(logs.folder / "log*"), positions) as reader:
                while True:
                    name, log = pending.pop(0) if pending else ("restart", 0)
                    if (
                        name == "rotate"
                        and sum(path.name.startswith(f"log{log}") for path in logs.folder.iterdir()) < 5
                    ):
                        logs.rotate(log)
                    elif name == "append":
                        logs.write(log)
                    elif name == "half":
                        logs.write(log, half=True)
                    elif name in ("read", "restart"):
                        await reader.has_read(len(logs.whole) - len(numbers))
                    if name == "restart":
                        break
            numbers += reader.numbers
            positions = Positions({**positions, **reader.out.positions}, reader.out.positions.states)
        assert sorted(numbers) == sorted(logs.whole)

    trio.run(main)
