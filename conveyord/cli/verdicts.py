"""What came of tests, for people: a line for each, and for those that failed the rows that differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len, set_cell_size

from conveyord.core.units import counted

if TYPE_CHECKING:
    from conveyord.engine.testing import Difference, OutputVerdict, Verdict

DIFFERENCES_MAX = 10  # shown for one output; what makes one row differ mostly makes the others differ too
CELL_WIDTH_MAX = 40
WIDTH_MAX = 120  # beyond it columns are left out that are the same in every row shown
LEAD_IN = 8  # characters shown before the first one that differs, where a value has to be cut
INDENT = " " * 8
# A record must not move the cursor or hide text; JSON escapes the other control characters itself.
_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def report(verdicts: Sequence[Verdict], *, colour: bool) -> str:
    """All of them by pipeline, and how many passed. Ends in a line end."""
    lines: list[str] = []
    for pipeline, group in groupby(verdicts, lambda verdict: verdict.pipeline):
        lines.append(pipeline)
        for verdict in group:
            lines += _verdict(verdict, colour=colour)
        if lines[-1]:
            lines.append("")
    failed = sum(not verdict.passed for verdict in verdicts)
    passed = f"{len(verdicts) - failed:,} passed"
    lines.append(_painted(f"{failed:,} failed, {passed}" if failed else passed, "red" if failed else "green", colour))
    return "\n".join(lines) + "\n"


def _painted(text: str, colour_name: str, colour: bool) -> str:
    return click.style(text, fg=colour_name) if colour else text


def _verdict(verdict: Verdict, *, colour: bool) -> Iterator[str]:
    if verdict.passed:
        yield f"  {_painted('ok', 'green', colour)}    {verdict.test}"
        return
    yield f"  {_painted('FAIL', 'red', colour)}  {verdict.test}"
    if verdict.error is not None:
        yield from (f"{INDENT}{line}" for line in verdict.error.split("\n"))
    for output in verdict.outputs:
        if not output.passed:
            yield ""
            yield from (f"{INDENT}{line}".rstrip() for line in _output(output, colour=colour))
    yield ""


def _output(output: OutputVerdict, *, colour: bool) -> Iterator[str]:
    counts = [
        f"{count:,} {kind}"
        for kind in ("changed", "missing", "unexpected")
        if (count := sum(one.kind == kind for one in output.differences))
    ]
    rows = counted(len(output.expected), "row")
    yield f"{output.output}: {rows} expected, {len(output.got):,} came; {', '.join(counts)}"
    shown = output.differences[:DIFFERENCES_MAX]
    yield from _table(output, shown, colour=colour)
    if len(shown) < len(output.differences):
        yield f"... and {counted(len(output.differences) - len(shown), 'more row')} that differ"
    yield from output.notes


def _table(output: OutputVerdict, shown: Sequence[Difference], *, colour: bool) -> Iterator[str]:
    """A header, then for each difference the row expected after `-`, the row that came after `+`."""
    entries = [_cells(output, one) for one in shown]
    names = list(dict.fromkeys(name for _, lines in entries for _, _, cells in lines for name in cells))
    widths = {
        name: max(cell_len(cells.get(name, "")) for _, lines in entries for _, _, cells in lines) for name in names
    }
    widths = {name: max(width, cell_len(_shortened(name))) for name, width in widths.items()}
    names, left_out = _fitting(widths, {name for one in shown for name in one.columns})
    number_width = max(len(number) for _, lines in entries for _, number, _ in lines)

    def line(mark: str, number: str, cells: Mapping[str, str], painted: Mapping[str, str] | None = None) -> str:
        padded = []
        for name in names:
            text = cells.get(name, "")
            space = " " * (widths[name] - cell_len(text))
            padded.append((_painted(text, painted[name], colour) if painted and name in painted else text) + space)
        return "  ".join([f"{mark} {number:>{number_width}}", *padded])

    yield line(" ", "", {name: _shortened(name) for name in names})
    for one, lines in entries:
        for mark, number, cells in lines:
            colour_name = "red" if mark == "-" else "green"
            marked = one.columns if one.kind == "changed" else tuple(cells)
            yield line(mark, number, cells, dict.fromkeys(marked, colour_name))
        if one.kind == "changed":
            _, _, got = lines[-1]
            yield line(" ", "", {name: "^" * max(cell_len(got[name]), 1) for name in one.columns if name in names})
    if left_out:
        yield f"{counted(left_out, 'more column')} not shown"


def _fitting(widths: Mapping[str, int], needed: set[str]) -> tuple[list[str], int]:
    """The columns that are shown, and how many are not: those needed, and others while there is room."""
    room = WIDTH_MAX - sum(widths[name] + 2 for name in needed)
    shown = set(needed)
    for name, width in widths.items():
        if name not in shown and (room >= width + 2 or not shown):
            shown.add(name)
            room -= width + 2
    return [name for name in widths if name in shown], len(widths) - len(shown)


_Line = tuple[str, str, dict[str, str]]


def _cells(output: OutputVerdict, one: Difference) -> tuple[Difference, list[_Line]]:
    """The lines of one difference: the mark, the number of the row, and the texts of its cells."""
    expected = None if one.expected is None else output.expected[one.expected]
    got = None if one.got is None else output.got[one.got]
    if expected is None or got is None:
        row, index, mark = (got, one.got, "+") if expected is None else (expected, one.expected, "-")
        assert row is not None
        assert index is not None
        return one, [(mark, str(index + 1), {name: _shortened(_text(value)) for name, value in row.items()})]
    above, below = {}, {}
    for name in dict.fromkeys([*got, *expected]):
        here, there = _text(got.get(name)), _text(expected.get(name))
        if name not in one.columns:
            above[name] = below[name] = _shortened(here)  # the same value, in whichever way it was written
        else:
            above[name], below[name] = _where_they_part(there, here)
    assert one.expected is not None
    assert one.got is not None
    return one, [("-", str(one.expected + 1), above), ("+", str(one.got + 1), below)]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPES)


def _shortened(text: str) -> str:
    return text if cell_len(text) <= CELL_WIDTH_MAX else f"{set_cell_size(text, CELL_WIDTH_MAX - 1)}…"


def _where_they_part(one: str, other: str) -> tuple[str, str]:
    """Two different texts, cut so that the first difference shows."""
    if max(cell_len(one), cell_len(other)) <= CELL_WIDTH_MAX:
        return one, other
    alike = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    start = max(0, (min(len(one), len(other)) if alike is None else alike) - LEAD_IN)
    if start <= 1:
        return _shortened(one), _shortened(other)
    return _shortened(f"…{one[start:]}"), _shortened(f"…{other[start:]}")
