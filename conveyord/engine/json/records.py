"""Strict reading of one line as one JSON object, with stable codes for what is refused.

| code | what stands on the line |
|---|---|
| MALFORMED_RECORD | not JSON: cut, a stray character, a raw control character in a string |
| MULTIPLE_VALUES | more than one JSON value |
| NOT_AN_OBJECT | JSON, but an array or a bare value |
| DUPLICATE_KEY | an object, at any depth, with the same key twice |
| BAD_KEY | an object with a key that is empty or holds a NUL, which no column can be named |
| NOT_A_NUMBER | NaN, Infinity or -Infinity, which JSON does not have |
| INVALID_UTF8 | bytes that are not UTF-8 |
| LONE_SURROGATE | half of a surrogate pair, as an escape |
| TOO_DEEP | objects and arrays nested deeper than `DEPTH_MAX` |

Numbers keep their text where a machine number would not: `NumberText` is a float, an integer beyond
64 bits, or `-0`. Every other integer is an `int`.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

DEPTH_MAX = 60  # far above real data; PyIceberg cannot read a table again that nests deeper than 64
_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_LONG_DIGITS = 18  # a token of at most this many characters fits 64 bits
_WHITESPACE = " \t\r\n"


class NumberText(str):
    """A JSON number as it was written."""

    __slots__ = ()


class Unusable(Exception):
    """A line that is no record. Caught where lines are read; never leaves this package."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def parse_record(line: bytes) -> dict[str, Any]:
    """The object on `line`: str, bool, None, int, NumberText, list and dict, keys in order.

    Raises Unusable with a code of the table above.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("INVALID_UTF8", f"byte {error.start} of the line is not UTF-8") from error
    text = text.strip(_WHITESPACE)
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise Unusable("MALFORMED_RECORD", f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise _too_deep() from error
    if end != len(text):
        _refuse_rest(text, end)
    if not isinstance(value, dict):
        raise Unusable("NOT_AN_OBJECT", "a record must be a JSON object")
    if text.count("{") + text.count("[") > DEPTH_MAX and _depth(value) > DEPTH_MAX:
        raise _too_deep()
    if "\\ud" in text or "\\uD" in text:
        _refuse_surrogates(value)
    return value


def text_of(value: Any) -> str:
    """The JSON text of a parsed value, compact, numbers as they were written."""
    match value:
        case NumberText():
            return value
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list():
            return "[" + ",".join(map(text_of, value)) + "]"
        case dict():
            pairs = (f"{json.dumps(key, ensure_ascii=False)}:{text_of(item)}" for key, item in value.items())
            return "{" + ",".join(pairs) + "}"
        case _:
            return json.dumps(value)


def _integer(token: str) -> int | NumberText:
    if token == "-0":
        return NumberText(token)
    if len(token) <= _LONG_DIGITS:
        return int(token)
    # Python refuses to convert thousands of digits, and 64 bits never need more than twenty.
    number = int(token) if len(token) <= 20 else _LONG_MAX + 1
    return number if _LONG_MIN <= number <= _LONG_MAX else NumberText(token)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unusable("DUPLICATE_KEY", f"the key {twice!r} stands twice in one object")
    if "" in value or "\0" in "".join(value):
        bad = next(key for key in value if not key or "\0" in key)
        raise Unusable("BAD_KEY", f"the key {bad!r} cannot name a column; rename it")
    return value


def _constant(token: str) -> NoReturn:
    raise Unusable("NOT_A_NUMBER", f"{token} is not a JSON number; write null or leave the field out")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=NumberText, parse_constant=_constant
)


def _refuse_rest(text: str, end: int) -> NoReturn:
    rest = text[end:].lstrip(_WHITESPACE)
    if rest[:1] in ("{", "["):
        raise Unusable("MULTIPLE_VALUES", "more than one JSON value on the line; write one record a line")
    raise Unusable("MALFORMED_RECORD", f"not JSON: {rest[:20]!r} after the end of the value")


def _refuse_surrogates(value: dict[str, Any]) -> None:
    try:
        text_of(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable("LONE_SURROGATE", "an escape names half of a surrogate pair") from error


def _depth(value: Any) -> int:
    depth, layer = 0, [value]
    while layer := [item for item in layer if isinstance(item, dict | list)]:
        depth += 1
        layer = [child for item in layer for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _too_deep() -> Unusable:
    return Unusable("TOO_DEEP", f"objects and arrays are nested deeper than {DEPTH_MAX}")
