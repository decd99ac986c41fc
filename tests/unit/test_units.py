"""Durations and sizes: what is read, and the sentences that refuse the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from conveyord.core.units import Bytes, Seconds, counted, format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("0s", 0),
        ("1d", 86400),
        (" 2s ", 2),
    ],
)
def test_a_duration_is_its_parts_added_up(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (30, "a duration needs a unit, such as 30s or 5m, got 30"),
        ("30", "a duration needs a unit, such as 30s or 30m, got '30'"),
        (True, "a duration needs a unit, such as 30s or 5m, got True"),
        ("", "not a duration: ''; write it like 250ms, 30s, 5m or 1h30m"),
        ("-5s", "not a duration: '-5s'; write it like 250ms, 30s, 5m or 1h30m"),
        ("5 s", "not a duration: '5 s'; write it like 250ms, 30s, 5m or 1h30m"),
        ("30m1h", "not a duration: '30m1h'; write it like 250ms, 30s, 5m or 1h30m"),
        ("1s1s", "not a duration: '1s1s'; write it like 250ms, 30s, 5m or 1h30m"),
        ("5M", "not a duration: '5M'; write it like 250ms, 30s, 5m or 1h30m"),
    ],
)
def test_what_is_not_a_duration_is_refused_with_a_correct_one(value: object, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_seconds(value)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("64MiB", 64 << 20),
        ("10MB", 10**7),
        ("1GiB", 1 << 30),
        (4096, 4096),
        ("4096", 4096),
        ("1.5 kB", 1500),
        ("0B", 0),
    ],
)
def test_a_size_is_its_number_times_its_unit(value: object, size: int) -> None:
    assert parse_bytes(value) == size


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (-1, "a size cannot be negative, got -1"),
        (1.5, "a size is a whole number of bytes or like 64MiB, got 1.5"),
        (None, "a size is a whole number of bytes or like 64MiB, got None"),
        (True, "a size is a whole number of bytes or like 64MiB, got True"),
        ("64mib", "unknown unit 'mib' in '64mib'; the units are B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        ("0.3B", "'0.3B' is not a whole number of bytes"),
        ("MiB", "not a size: 'MiB'; write it like 500kB, 10MB, 64MiB or 1GiB"),
        ("-5MB", "not a size: '-5MB'; write it like 500kB, 10MB, 64MiB or 1GiB"),
    ],
)
def test_what_is_not_a_size_is_refused_with_a_correct_one(value: object, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_bytes(value)
    assert str(refused.value) == sentence


def test_a_text_too_long_to_be_either_is_refused_shortened() -> None:
    for parse in (parse_seconds, parse_bytes):
        with pytest.raises(ValueError, match="…"):
            parse("9" * 10_000 + "s")


@given(st.text(max_size=60))
def test_any_text_is_a_duration_or_refused_with_a_sentence(text: str) -> None:
    for parse in (parse_seconds, parse_bytes):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert value >= 0


@given(st.integers(0, 10**15))
def test_a_plain_size_reads_back_as_itself(size: int) -> None:
    assert parse_bytes(size) == parse_bytes(str(size)) == parse_bytes(f"{size}B") == size


def test_a_model_validates_units_and_takes_defaults_as_they_are() -> None:
    class Limits(BaseModel):
        every: Seconds = 60.0
        size: Bytes = 5

    assert Limits(every="90s", size="1KiB") == Limits.model_validate({"every": "1m30s", "size": 1024})  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="a duration needs a unit"):
        Limits.model_validate({"every": 90})


def test_sizes_and_durations_for_people() -> None:
    assert [format_bytes(size) for size in (0, 1023, 1536, 1023 << 10, 5 << 30)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "1.00 MiB",
        "5.00 GiB",
    ]
    assert [format_seconds(s) for s in (0.123, 1.25, 59.4, 125, 7265)] == [
        "0.12 s",
        "1.2 s",
        "59.4 s",
        "2m 05s",
        "2h 01m",
    ]


def test_a_count_takes_the_plural_except_for_one() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 2000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
