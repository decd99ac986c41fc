"""What a plain scalar of YAML means: the core schema of version 1.2, and `_` between digits."""

from __future__ import annotations

import math
import re

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")


def plain_value(text: str) -> str | int | float | bool | None:
    """The value of unquoted `text`. Raises ValueError with a sentence for a number that no setting can have."""
    first = text[:1]
    if first.isalpha() or first in ("", "~"):
        if _NULL.fullmatch(text):
            return None
        return first in "tT" if _BOOL.fullmatch(text) else text
    if _INT.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if not math.isfinite(number):
            raise ValueError(f"{text} is not a number that a setting can have")
        return number
    if _SPECIAL.fullmatch(text):
        raise ValueError(f"{text} is not a number that a setting can have")
    return text


def _integer(text: str) -> int | str:
    digits = text.replace("_", "")
    try:
        return int(digits, 0) if digits[:2] in ("0x", "0o", "0b") else int(digits)
    except ValueError:
        if len(digits) < 3:
            return text  # `0x_` has no digits
        raise ValueError("a number with more digits than any setting can have") from None
