"""The index of a reference against a plain dictionary, for every kind of key."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.lookup import texts
from conveyord.engine.lookup.enrichment import Enrichment, Reference
from conveyord.engine.lookup.integers import MISS, IntegerIndex
from conveyord.engine.lookup.texts import hashes_of

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
LONGS = st.one_of(
    st.integers(-5, 20), st.integers(LONG_MIN, LONG_MAX), st.sampled_from([LONG_MIN, LONG_MAX, LONG_MIN + 1, 0, 2**62])
)
# Lengths around the words of eight bytes that are hashed, and keys that differ in one byte only.
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "a", "a\0", "\0", "x" * 7, "x" * 8, "x" * 9, "x" * 16, "x" * 17, "é" * 8]),
)
MICROS = st.integers(-(2**40), 2**40)


def reference(
    columns: dict[str, pa.Array], on: dict[str, str] | None = None, *, text_keys: bool = False, **more: Any
) -> Reference:
    options = {"columns": (), "prefix": "", "nest": None, "defaults": None, "duplicates": "first"}
    on = {name: name for name in columns} if on is None else on
    enrichment = Enrichment(on=on, text_keys=text_keys, stage="look", **{**options, **more})
    return Reference(enrichment, pa.table(columns), name="reference r.csv")


def found(known: Reference, **columns: pa.Array) -> list[int]:
    return known.rows_of(pa.record_batch(columns)).tolist()


def expected(keys: list[Any], asked: list[Any]) -> list[int]:
    """By dictionary: the first row of each key; None, alone or within, matches nothing."""
    rows: dict[Any, int] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, row)
    return [MISS if _has_none(key) else rows.get(key, MISS) for key in asked]


def _has_none(key: Any) -> bool:
    return key is None or (isinstance(key, tuple) and None in key)


def check(kind: pa.DataType, keys: list[Any], asked: list[Any]) -> None:
    """Also of slices, whose buffers begin elsewhere."""
    known = reference({"k": pa.array(keys, kind)})
    assert found(known, k=pa.array(asked, kind)) == expected(keys, asked)
    assert found(known, k=pa.array([*keys[:1], *asked], kind)[1 if keys else 0 :]) == expected(keys, asked)
    sliced = reference({"k": pa.array([*asked[:1], *keys], kind)[1 if asked else 0 :]})
    assert found(sliced, k=pa.array(asked, kind)) == expected(keys, asked)


@given(st.data())
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), LONGS),
        (pa.int8(), st.integers(-128, 127)),
        (pa.uint64(), st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 9))),
        (pa.string(), TEXTS),
        (pa.large_string(), TEXTS),
        (pa.string_view(), TEXTS),
        (pa.dictionary(pa.int8(), pa.string()), TEXTS),
        (pa.binary(), st.binary(max_size=20)),
        (pa.binary(3), st.binary(min_size=3, max_size=3)),
        (pa.bool_(), st.booleans()),
        (pa.date32(), st.dates()),
        (pa.timestamp("us"), MICROS.map(lambda micros: dt.datetime(2020, 1, 1) + dt.timedelta(microseconds=micros))),
        (pa.decimal128(20, 2), st.decimals(-(10**17), 10**17, places=2)),
        (pa.float64(), st.floats(allow_nan=False)),
        (pa.time64("us"), st.times()),
    ],
    ids=str,
)
def test_every_key_is_found_where_it_first_stands_and_nothing_else(
    kind: pa.DataType, values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    keys = data.draw(st.lists(st.none() | values, max_size=12))
    asked = data.draw(st.lists(st.none() | (st.sampled_from(keys) | values if keys else values), max_size=12))
    check(kind, keys, asked)


@given(st.data())
def test_composite_keys_match_where_all_their_columns_do(data: st.DataObject) -> None:
    pairs = st.tuples(st.none() | LONGS, st.none() | st.sampled_from("abc"), st.none() | st.booleans())
    keys = data.draw(st.lists(pairs, max_size=12))
    asked = data.draw(st.lists(st.sampled_from(keys) | pairs if keys else pairs, max_size=12))
    kinds = {"a": pa.int64(), "b": pa.string(), "c": pa.bool_()}

    def columns(rows: list[Any]) -> dict[str, pa.Array]:
        return {name: pa.array([row[at] for row in rows], kind) for at, (name, kind) in enumerate(kinds.items())}

    assert found(reference(columns(keys)), **columns(asked)) == expected(keys, asked)


def test_many_columns_of_many_values_still_make_one_number() -> None:
    """Their product exceeds 64 bits, so that the numbers of the first columns must be given anew."""
    random = np.random.default_rng(3)
    count = 3_000
    columns = {f"c{n}": pa.array(random.permutation(count)) for n in range(8)}
    known = reference(columns)
    assert found(known, **columns) == list(range(count))
    swapped = {**columns, "c7": columns["c7"].take(pa.array(np.roll(np.arange(count), 1)))}
    assert found(known, **swapped) == [MISS] * count


@pytest.mark.parametrize("spread", [1, 3, 1000, 2**40], ids=str)
def test_a_hundred_thousand_integers_are_all_found(spread: int) -> None:
    keys = np.random.default_rng(5).permutation(100_000) * spread - 77
    index = IntegerIndex(keys, np.arange(len(keys), dtype=np.int32))
    assert (index.find(keys) == np.arange(len(keys))).all()
    assert (index.find(np.array([-78, 100_000 * spread, LONG_MIN, LONG_MAX])) == MISS).all()


def test_integers_that_reach_from_end_to_end_leave_one_for_empty_slots() -> None:
    keys = np.array([LONG_MIN, LONG_MIN + 1, LONG_MAX])
    index = IntegerIndex(keys, np.arange(3, dtype=np.int32))
    assert index.find(np.array([LONG_MIN, LONG_MAX, LONG_MIN + 1, LONG_MIN + 2, 0])).tolist() == [0, 2, 1, MISS, MISS]


def test_strings_of_equal_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash of four bits makes every batch collide: the index must say so rather than answer wrongly."""

    def weak(values: pa.Array, *, seed: int, longest_bytes: int) -> np.ndarray:
        return hashes_of(values, seed=seed, longest_bytes=longest_bytes) & (15 if seed == 0 else -1)

    monkeypatch.setattr(texts, "hashes_of", weak)
    keys = [f"key {n}" for n in range(100)]
    check(pa.string(), keys, [*keys, "key 100", None])
    monkeypatch.setattr(texts, "hashes_of", lambda values, **_: np.zeros(len(values), np.int64))
    with pytest.raises(ConfigError, match="cannot be told apart"):
        found(reference({"k": pa.array(keys)}), k=pa.array(keys))
    check(pa.string(), ["one"], ["one", "two"])


@given(st.lists(TEXTS, unique=True, min_size=2, max_size=30))
def test_different_strings_have_different_hashes(values: list[str]) -> None:
    hashes = hashes_of(pa.array(values), seed=0, longest_bytes=100)
    assert len(set(hashes.tolist())) == len(values)
    for value, hashed in zip(values, hashes, strict=True):
        assert hashes_of(pa.array([value]), seed=0, longest_bytes=100)[0] == hashed, "whatever stands beside it"


def test_keys_longer_than_any_of_the_reference_are_not_hashed_and_not_found() -> None:
    known = reference({"k": pa.array(["a", ""])})
    assert found(known, k=pa.array(["a", "a" * 100_000, "", None])) == [0, MISS, 1, MISS]
    with pytest.raises(ConfigError) as refused:
        reference({"k": pa.array(["a" * 4097])}).prepare()
    assert str(refused.value) == (
        "reference r.csv: a key has 4,097 bytes, more than 4,096; look up by something shorter"
    )


# ---------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (pa.array([1.0, 2.5, float("nan"), 1e300, None]), pa.array([1, 2])),
        (pa.array([1, 7], pa.int8()), pa.array([1.0, 2.0])),
        (pa.array([1, 2**64 - 1], pa.uint64()), pa.array([1, -1])),
        (pa.array([1, -1]), pa.array([1, 2**64 - 1], pa.uint64())),
        (pa.array([Decimal("1.00"), Decimal("1.50")]), pa.array([1, 2])),
        (pa.array([Decimal("1.0")]), pa.array([Decimal("1.000")])),
        (pa.array([-0.0, float("nan")]), pa.array([0.0, float("nan")])),
        (pa.array([1.5], pa.float32()), pa.array([1.5])),
        (pa.array([1_000], pa.timestamp("ms")), pa.array([1], pa.timestamp("s"))),
        (pa.array([1_000], pa.timestamp("ms", "UTC")), pa.array([1], pa.timestamp("s", "Europe/Vienna"))),
        (pa.array([86_400_000], pa.date64()), pa.array([1], pa.date32())),
        (pa.array(["x"]).dictionary_encode(), pa.array(["x"], pa.large_string())),
    ],
)
def test_keys_of_like_types_match_by_value(row: pa.Array, key: pa.Array) -> None:
    assert found(reference({"k": key}), k=row) == [0] + [MISS] * (len(row) - 1)


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (pa.array([1]), pa.array(["1"])),
        (pa.array(["1"]), pa.array([1])),
        (pa.array([True]), pa.array([1])),
        (pa.array([1.5]), pa.array([Decimal("1.5")])),
        (pa.array([0], pa.timestamp("us")), pa.array([0], pa.timestamp("us", "UTC"))),
        (pa.array([0], pa.timestamp("us")), pa.array([0], pa.date32())),
        (pa.array(["a"]), pa.array([b"a"])),
        (pa.array([[1]]), pa.array([[1]])),
        (pa.array([{"a": 1}]), pa.array([{"a": 1}])),
    ],
)
def test_keys_of_unlike_types_are_refused(row: pa.Array, key: pa.Array) -> None:
    with pytest.raises(ConfigError) as refused:
        found(reference({"code": key}, {"k": "code"}), k=row)
    assert str(refused.value) == (
        f"stage 'look': 'k' is {row.type}, and 'code' of reference r.csv is {key.type}, which cannot be compared "
        "exactly; give one of them the type of the other, with `cast` before this stage or in the reference"
    )


def test_a_column_of_nulls_matches_nothing_whatever_the_other_side_is() -> None:
    assert found(reference({"k": pa.array(["a"])}), k=pa.nulls(2)) == [MISS, MISS]
    assert found(reference({"k": pa.nulls(2)}), k=pa.array(["a", None])) == [MISS, MISS]
    assert found(reference({"k": pa.nulls(2)}), k=pa.nulls(1)) == [MISS]
    assert found(reference({"k": pa.array([], pa.string())}), k=pa.array(["a"])) == [MISS]
    assert found(reference({"k": pa.array(["a"])}), k=pa.array([], pa.string())) == []


def test_text_keys_are_what_the_rows_have() -> None:
    known = reference({"k": pa.array(["1", "02", "3.0"])}, text_keys=True)
    assert found(known, k=pa.array(["02", "2"])) == [1, MISS]
    assert found(known, k=pa.array([3.0, 2.0])) == [2, 1]
    assert found(reference({"k": pa.array(["nan", "-0"])}, text_keys=True), k=pa.array([0.0, float("nan")])) == [
        1,
        MISS,
    ]
    decimals = pa.array([Decimal("3.00"), Decimal("1.01")])
    assert found(known, k=decimals) == [2, MISS]
    with pytest.raises(ConfigError) as refused:
        found(known, k=pa.array([1]))
    assert "the rows' key is int64, and column 'k' of reference r.csv has values that are none" in str(refused.value)
    assert "3.0" in str(refused.value)


def test_a_value_beyond_what_is_compared_is_the_fault_of_its_row() -> None:
    known = reference({"k": pa.array([1], pa.timestamp("ns"))})
    with pytest.raises(BatchError, match="a key cannot be compared"):
        found(known, k=pa.array([2**62], pa.timestamp("s")))


# ---------------------------------------------------------------------------- duplicates


@given(st.lists(st.integers(0, 5) | st.none(), max_size=10), st.booleans(), st.booleans())
def test_of_a_key_that_stands_twice_the_row_that_was_asked_for_counts(
    keys: list[int | None], is_text: bool, is_pair: bool
) -> None:
    column = pa.array(keys, pa.int64()).cast(pa.string() if is_text else pa.int64())
    columns = {"k": column, "l": column} if is_pair else {"k": column}
    for duplicates in ("first", "last"):
        rows = {key: row for row, key in enumerate(keys) if duplicates == "last" or key not in keys[:row]}
        known = reference(columns, duplicates=duplicates)
        assert found(known, **columns) == [MISS if key is None else rows[key] for key in keys]


@given(st.lists(st.integers(0, 4) | st.none(), min_size=5, max_size=10), st.booleans())
def test_a_key_that_stands_twice_is_named_with_its_rows(keys: list[int | None], is_text: bool) -> None:
    second = next((row for row, key in enumerate(keys) if key is not None and key in keys[:row]), None)
    assume(second is not None)
    assert second is not None
    column = pa.array(keys, pa.int64()).cast(pa.string() if is_text else pa.int64())
    with pytest.raises(ConfigError) as refused:
        reference({"k": column}, duplicates="fail").prepare()
    shown = repr(str(keys[second])) if is_text else str(keys[second])
    assert str(refused.value) == (
        f"reference r.csv has a key twice: k = {shown} in rows {keys.index(keys[second]) + 1} and {second + 1}; mend "
        "it, add a column to `on`, or say which row counts by `duplicates: first` or `last`"
    )
