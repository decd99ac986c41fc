"""Tables, JSON and YAML of replies."""

from __future__ import annotations

import json

import msgspec
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from conveyord.api.messages import ConfigEntries, ConfigEntry
from conveyord.cli.ctl.output import Column, age, cut, lines_of, moment, printable, show, width_of

PAIR = (Column[tuple[str, str]]("name", lambda row: row[0]), Column[tuple[str, str]]("what", lambda row: row[1]))
NUMBERS = (Column[tuple[str, str]]("n", lambda row: row[0], is_number=True), PAIR[1])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (3_599, "59m"), (3_600, "1h"), (172_799, "47h"), (172_800, "2d")]
    + [(86_400 * 400, "400d")],
)
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_a_time_is_iso_8601_or_its_number() -> None:
    assert moment(1_700_000_000_000) == "2023-11-14T22:13:20Z"
    assert moment(2**63 - 1) == f"{2**63 - 1} ms"


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    rows = [("a", "1"), ("日本", "2"), ("e\N{COMBINING ACUTE ACCENT}x", "3")]
    assert lines_of(PAIR, rows, cell_chars_max=None, width=None) == [
        "NAME  WHAT",
        "a     1",
        "日本  2",
        "e\N{COMBINING ACUTE ACCENT}x    3",
    ]


def test_numbers_stand_to_the_right() -> None:
    assert lines_of(NUMBERS, [("7", "x"), ("1,234", "y")], cell_chars_max=None, width=None) == [
        "    N  WHAT",
        "    7  x",
        "1,234  y",
    ]


def test_the_last_column_ends_with_the_terminal_and_others_at_their_limit() -> None:
    assert lines_of(PAIR, [("x" * 70, "y" * 200)], cell_chars_max=60, width=100)[1] == f"{'x' * 59}…  {'y' * 37}…"
    assert lines_of(PAIR, [("x" * 70, "y" * 200)], cell_chars_max=60, width=10)[1] == f"{'x' * 59}…  {'y' * 19}…"
    assert lines_of(PAIR, [("x" * 70, "y" * 200)], cell_chars_max=None, width=None)[1] == f"{'x' * 70}  {'y' * 200}"


def test_what_moves_a_cursor_is_not_shown() -> None:
    assert printable("a\x1b[2J\r\n\u202eb") == "a\ufffd[2J\ufffd\ufffd\ufffdb"


@given(st.text(max_size=40), st.integers(1, 30))
def test_a_cut_text_fits(text: str, width: int) -> None:
    assert width_of(cut(text, width)) <= width
    assert cut(text, width) == text or cut(text, width).endswith("…")


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=90)), min_size=1, max_size=6), st.integers(30, 120))
def test_lines_are_no_wider_than_the_terminal(rows: list[tuple[str, str]], width: int) -> None:
    lines = lines_of(PAIR, rows, cell_chars_max=60, width=max(width, 60))
    assert len(lines) == len(rows) + 1
    assert all(width_of(line) <= max(width, 60) and printable(line) == line for line in lines)


VALUES = st.binary(max_size=30)


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), VALUES), max_size=4))
def test_yaml_says_what_json_says_and_both_what_the_api_says(entries: list[tuple[str, bytes]]) -> None:
    reply = ConfigEntries(
        index=7,
        entries=tuple(ConfigEntry(key=key, created=1, changed=2, size=3, value=value) for key, value in entries),
        more=False,
    )
    told = json.loads(shown(reply, "json"))
    assert told == yaml.safe_load(shown(reply, "yaml"))
    assert msgspec.convert(told, ConfigEntries) == reply


def shown(reply: ConfigEntries, output: str) -> bytes:
    with CliRunner().isolation() as (out, _, _):
        show(reply, (), (), output)
        return out.getvalue()
