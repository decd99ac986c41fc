"""Reads one broken input in every way a run can, and holds each to the books: read = rows + skipped + dead."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from conveyord.core.errors import ConveyordError
from conveyord.core.flow.positions import Positions
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext, Source
from tests.engine.fuzz_corpus import BOM
from tests.engine.source_rig import Collector, Letters

CLOSING_SECONDS = 10
MESSAGE_CHARACTERS_MAX = 2_000  # what somebody can still read

Make = Callable[[OperatorContext], Source]


@dataclass
class Books:
    """What came of reading from some positions on."""

    rows: list[dict[str, Any]]
    read: int
    skipped: int
    dead: int
    positions: Positions
    letters: Letters
    error: ConveyordError | None


async def reading(make: Make, data_dir: Path, held: Positions, **more: Any) -> Books:
    """One run of a source. Anything but a `ConveyordError` comes out: it is the crash that is looked for."""
    letters = Letters()
    with_letters = {"dead_letters": letters} if more.pop("dlq", False) else {}
    context = OperatorContext("default/p", "in", data_dir, trio.CapacityLimiter(2), **with_letters, **more)
    out, source, error = Collector(), make(context), None
    try:
        await source.run(out, fences=(held,), drain=out.drain)
    except ConveyordError as failure:
        error = failure
    finally:
        with trio.move_on_after(CLOSING_SECONDS, shield=True):
            await source.close()
    total = Tally()
    positions = held
    for number, (data, spans, tally) in enumerate(out.batches):
        data.validate(full=True)
        assert tally.rows == data.num_rows
        # Raises if a span leaves a gap or comes twice.
        positions = Positions(positions.advanced(spans), {**positions.states, **out.states[number]})
        total += tally
    assert len(letters.rejected) == total.dead
    await _decode_again(source, letters, positions)
    return Books(out.rows, total.read, total.skipped, total.dead, positions, letters, error)


async def _decode_again(source: Source, letters: Letters, positions: Positions) -> None:
    """A dead letter is still bad when its bytes are replayed, and says so."""
    for rejected in letters.rejected:
        raw = rejected.place.record.raw
        if raw is None or raw.startswith(BOM):
            continue  # a byte order mark amid a file is a fault that its record does not have by itself
        try:
            data = await trio.to_thread.run_sync(source.decode, raw, positions.states.get("in"))
        except ConveyordError:
            continue
        raise AssertionError(f"a record is bad in its file and good by itself: {raw!r}, {data}, {rejected.error}")


@dataclass
class Ways:
    """One input: to its first bad record, as dead letters, passed over, and passed over after a stop."""

    strict: Books
    letters: Books
    skipping: Books

    def ends_with(self, refused: Collection[str], *, letters: Collection[str]) -> bool:
        """Whether bad records alone stop no run that sets them aside or passes over them.

        refused: codes of what no run can go on after, such as a file that cannot be understood at all. letters:
        of what stops a run that keeps dead letters, but not one that passes over it.
        """
        stopped = self.skipping.error
        if stopped is not None:
            return stopped.code in refused and self.letters.error is not None
        return self.letters.error is None or self.letters.error.code in letters


async def in_every_way(make: Make, data_dir: Path, *, where: str, partitions: int = 1) -> Ways:
    """Read one input in every way, and compare what must agree. where: what each message names.

    Several partitions take turns, so one of them may go on while another stands at a bad record.
    """
    nowhere = Positions()

    async def checked(make: Make, data_dir: Path, held: Positions, **more: Any) -> Books:
        books = await reading(make, data_dir, held, **more)
        assert books.error is None or where in str(books.error), books.error
        assert len(str(books.error)) < MESSAGE_CHARACTERS_MAX, books.error
        return books

    strict = await checked(make, data_dir, nowhere)
    again = await checked(make, data_dir, strict.positions)
    if partitions == 1:
        assert (again.rows, str(again.error)) == ([], str(strict.error)), "a stopped run stops at the same place again"
    assert strict.read == len(strict.rows)

    skipping = await checked(make, data_dir, nowhere, skip_bad=True)
    rest = await checked(make, data_dir, strict.positions, skip_bad=True)
    in_order = sorted if partitions > 1 else list
    assert in_order(known(strict.rows) + known(rest.rows)) == in_order(known(skipping.rows)), "none is lost or doubled"
    assert (strict.read + rest.read, rest.skipped) == (skipping.read, skipping.skipped)
    assert skipping.read == len(skipping.rows) + skipping.skipped
    if strict.error is None:
        assert (skipping.skipped, skipping.error) == (0, None)
    after = await checked(make, data_dir, skipping.positions, skip_bad=True)
    assert after.rows == []

    letters = await checked(make, data_dir, nowhere, dlq=True)
    assert letters.read == len(letters.rows) + letters.dead
    if letters.error is None:
        assert known(letters.rows) == known(skipping.rows)
        assert (letters.read, letters.dead) == (skipping.read, skipping.skipped)
    else:
        assert known(letters.rows) == known(skipping.rows)[: len(letters.rows)]
    assert (await checked(make, data_dir, letters.positions, dlq=True)).rows == []
    return Ways(strict, letters, skipping)


def known(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as text, without what is null: a batch may come before a column that its source has later."""
    return [repr(_without_nulls(row)) for row in rows]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        found = {key: _without_nulls(each) for key, each in sorted(value.items())}
        return {key: each for key, each in found.items() if each not in (None, {})}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
