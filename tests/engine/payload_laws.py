"""What holds for every format of values, whatever they hold: checked by the tests of each format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from conveyord.engine.payloads.contract import PayloadDecoder, Payloads
from conveyord.engine.schema import merge


def rows_of(found: Payloads) -> dict[int, list[str]]:
    """The rows of each good value, nulls left out: a wider schema has more of them. As text: NaN is not itself."""
    rows = found.data.to_pylist() if len(found.schema) else [{}] * found.data.num_rows
    numbers = range(len(rows)) if found.numbers is None else found.numbers.tolist()
    made: dict[int, list[str]] = {}
    for number, row in zip(numbers, rows, strict=True):
        made.setdefault(number, []).append(repr(_plain(row)))
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value) if _plain(value[key]) is not None} or None
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def check_shape(found: Payloads, values: Sequence[bytes]) -> None:
    """What a result promises about itself."""
    assert found.data.schema.equals(found.schema)
    found.data.validate(full=True)
    bad = [one.number for one in found.bad]
    assert bad == sorted(set(bad)) and set(bad) <= set(range(len(values)))
    assert all(one.code and one.reason and "\n" not in one.reason for one in found.bad)
    if found.numbers is None:
        assert found.data.num_rows == len(values) and not found.bad
    else:
        numbers = found.numbers.tolist()
        assert len(numbers) == found.data.num_rows and numbers == sorted(numbers)
        assert not set(numbers) & set(bad)


def check_laws(decoder: PayloadDecoder, values: Sequence[bytes], others: Sequence[bytes] = ()) -> Payloads:
    """The same values give the same rows under the same and under wider schemas, alone and beside others.

    Returns what the values gave under no schema.
    """
    found = decoder.decode(values, None)
    check_shape(found, values)
    rows, bad = rows_of(found), [(one.number, one.code) for one in found.bad]
    wider = decoder.decode(others, found.schema)
    check_shape(wider, others)
    assert merge(wider.schema, found.schema).equals(wider.schema), "a schema only grows"
    widest = pa.schema([*wider.schema, pa.field("of others only", pa.int64())])
    for schema in (found.schema, wider.schema, widest):
        again = decoder.decode(values, schema)
        check_shape(again, values)
        assert again.schema.equals(schema), "what was settled is not grown again"
        assert rows_of(again) == rows
        assert [(one.number, one.code) for one in again.bad] == bad
    for number, value in enumerate(values):
        alone = decoder.decode([value], found.schema)
        assert rows_of(alone).get(0) == rows.get(number)
        assert [one.code for one in alone.bad] == [code for at, code in bad if at == number]
    together = decoder.decode([*others, *values, *others], widest)
    check_shape(together, [*others, *values, *others])
    at = len(others)
    assert {number - at: made for number, made in rows_of(together).items() if 0 <= number - at < len(values)} == rows
    return found


def damaged(values: Sequence[bytes]) -> st.SearchStrategy[tuple[int, bytes]]:
    """One of `values` cut short, with some of its bytes changed, prolonged, or replaced; and which one."""

    @st.composite
    def one(draw: st.DrawFn) -> tuple[int, bytes]:
        number = draw(st.integers(0, len(values) - 1))
        value = bytearray(values[number])
        match draw(st.sampled_from(["cut", "flip", "flip", "append", "replace"])):
            case "cut":
                value = value[: draw(st.integers(0, len(value)))]
            case "flip" if value:
                for _ in range(draw(st.integers(1, 4))):
                    value[draw(st.integers(0, len(value) - 1))] = draw(st.integers(0, 255))
            case "append":
                value += draw(st.binary(min_size=1, max_size=20))
            case _:
                value = bytearray(draw(st.binary(max_size=40)))
        return number, bytes(value)

    return one()


def check_damage(decoder: PayloadDecoder, values: Sequence[bytes], number: int, value: bytes) -> None:
    """A damaged value is bad or has rows of its own; nothing of the others changes."""
    whole = decoder.decode(values, None)
    given = [*values[:number], value, *values[number + 1 :]]
    found = decoder.decode(given, whole.schema)
    check_shape(found, given)
    assert [one.number for one in found.bad if one.number != number] == [
        one.number for one in whole.bad if one.number != number
    ]
    before, after = rows_of(whole), rows_of(found)
    before.pop(number, None)
    after.pop(number, None)
    assert after == before
