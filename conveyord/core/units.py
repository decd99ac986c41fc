"""Durations and sizes as people write them: `1h30m`, `250ms`, `64MiB`, `10MB`.

`Seconds` and `Bytes` are types for pydantic models. A duration always needs a unit, because `30` has
meant seconds, minutes and milliseconds in different tools; a plain number of bytes is unambiguous.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Annotated

from pydantic import BeforeValidator

_DURATION_UNITS = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
_SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")
_DIGITS = re.compile(r"[0-9]+")
TEXT_CHARS_MAX = 40  # longer than any sensible duration or size; keeps exact arithmetic on short numbers


def parse_seconds(value: object) -> float:
    """The seconds that `value` stands for: numbers with units, largest unit first, each at most once.

    Raises ValueError with a sentence that names the value and shows a correct one.
    """
    if not isinstance(value, str):
        raise ValueError(f"a duration needs a unit, such as 30s or 5m, got {_shown(value)}")
    text = value.strip()
    if len(text) > TEXT_CHARS_MAX:
        raise ValueError(f"not a duration: {_shown(value)}; write it like 250ms, 30s, 5m or 1h30m")
    if _DIGITS.fullmatch(text):
        raise ValueError(f"a duration needs a unit, such as {text}s or {text}m, got {value!r}")
    parts = _DURATION_PART.findall(text)
    units = [_DURATION_UNITS[unit] for _, unit in parts]
    whole = "".join(number + unit for number, unit in parts) == text
    descending = all(larger > smaller for larger, smaller in pairwise(units))
    if not parts or not whole or not descending:
        raise ValueError(f"not a duration: {value!r}; write it like 250ms, 30s, 5m or 1h30m")
    return float(sum((Fraction(number) * _DURATION_UNITS[unit] for number, unit in parts), Fraction(0)))


def parse_bytes(value: object) -> int:
    """The bytes that `value` stands for: a whole number, or a number with a unit.

    Raises ValueError with a sentence that names the value and shows a correct one.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"a size cannot be negative, got {value}")
        return value
    if not isinstance(value, str):
        raise ValueError(f"a size is a whole number of bytes or like 64MiB, got {_shown(value)}")
    text = value.strip()
    if len(text) > TEXT_CHARS_MAX:
        raise ValueError(f"not a size: {_shown(value)}; write it like 500kB, 10MB, 64MiB or 1GiB")
    if _DIGITS.fullmatch(text):
        return int(text)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {value!r}; write it like 500kB, 10MB, 64MiB or 1GiB")
    number, unit = match.groups()
    if unit not in _SIZE_UNITS:
        raise ValueError(f"unknown unit {unit!r} in {value!r}; the units are {', '.join(_SIZE_UNITS)}")
    size = Fraction(number) * _SIZE_UNITS[unit]
    if size.denominator != 1:
        raise ValueError(f"{value!r} is not a whole number of bytes")
    return int(size)


def format_bytes(size: int) -> str:
    """`size` for people, in binary units with three significant digits: `1.46 GiB`."""
    if size < 1024:
        return f"{size} B"
    amount = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1000 or unit == "TiB":
            break
    digits = 2 if amount < 10 else 1 if amount < 100 else 0
    return f"{amount:.{digits}f} {unit}"


def counted(count: int, word: str) -> str:
    """`count` with its noun, which takes an s unless there is one: `1 row`, `2,000 rows`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """`seconds` for people: `0.42 s`, `12.3 s`, `2m 05s`, `3h 07m`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX] + "…"


Seconds = Annotated[float, BeforeValidator(parse_seconds)]
"""A duration in a configuration, kept as seconds."""

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
"""A size in a configuration, kept as bytes."""
