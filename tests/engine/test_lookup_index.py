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
from conveyord.engine.lookup import keys as keys_module
from conveyord.engine.lookup import tags, texts
from conveyord.engine.lookup.enrichment import Enrichment, Reference
from conveyord.engine.lookup.integers import MISS, IntegerIndex
from conveyord.engine.lookup.tags import TaggedIndex
from conveyord.engine.lookup.texts import LAID_BYTES_MAX, hashes_of, strings

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
LONGS = st.one_of(
    st.integers(-5, 20), st.integers(LONG_MIN, LONG_MAX), st.sampled_from([LONG_MIN, LONG_MAX, LONG_MIN + 1, 0, 2**62])
)
# Lengths around the words of eight bytes that are hashed, and keys that differ in one byte only.
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "a", "a\0", "\0", "x" * 7, "x" * 8, "x" * 9, "x" * 16, "x" * 17, "é" * 8]),
)
# Around the length from which on keys are not laid out in rows of words.
LONG_TEXTS = TEXTS | st.sampled_from([letter * length for letter in "xy\0" for length in (63, 64, 65, 71, 72, 73, 300)])
MICROS = st.integers(-(2**40), 2**40)


def reference(
    columns: dict[str, pa.Array], on: dict[str, str] | None = None, *, text_keys: bool = False, **more: Any
) -> Reference:
    options = {"columns": (), "prefix": "", "nest": None, "defaults": None, "duplicates": "first"}
    on = {name: name for name in columns} if on is None else on
    enrichment = Enrichment(on=on, text_keys=text_keys, **{**options, **more})
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
        (pa.string(), LONG_TEXTS),
        (pa.binary(), LONG_TEXTS.map(str.encode)),
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

    def weak(values: texts.Strings, *, seed: int) -> np.ndarray:
        return hashes_of(values, seed=seed) & (15 if seed == 0 else -1)

    monkeypatch.setattr(texts, "hashes_of", weak)
    keys = [f"key {n}" for n in range(100)]
    check(pa.string(), keys, [*keys, "key 100", None])
    monkeypatch.setattr(texts, "hashes_of", lambda values, **_: np.zeros(len(values.words), np.int64))
    with pytest.raises(ConfigError, match="cannot be told apart"):
        found(reference({"k": pa.array(keys)}), k=pa.array(keys))
    check(pa.string(), ["one"], ["one", "two"])


@given(st.lists(TEXTS.filter(lambda text: len(text.encode()) <= LAID_BYTES_MAX), unique=True, min_size=2, max_size=30))
@pytest.mark.parametrize("longest", [LAID_BYTES_MAX, LAID_BYTES_MAX + 1])
def test_different_strings_have_different_hashes(longest: int, values: list[str]) -> None:
    hashes = hashes_of(strings(pa.array(values), longest), seed=0)
    assert len(set(hashes.tolist())) == len(values)
    for value, hashed in zip(values, hashes, strict=True):
        assert hashes_of(strings(pa.array([value]), longest), seed=0)[0] == hashed, "whatever stands beside it"


@pytest.mark.parametrize("longest", [0, 1, 7, 8, 9, 23, 24, 25, 63, 64, 65])
def test_keys_of_every_length_are_told_from_those_that_begin_like_them(longest: int) -> None:
    keys = ["x" * length for length in range(longest + 1)]
    near = [f"{key}{more}" for key in keys for more in ("", "\0", "x", "xxxxxxxx", "\0" * 300, "x" * 300)]
    check(pa.string(), keys, [*keys, *near])


def test_more_keys_than_are_laid_out_at_a_time_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK_ROWS", 7)
    keys = [f"{number * 7919 % 1_000:x}-{number}" for number in range(200)]
    check(pa.string(), keys, [*keys[::-1], *(key + "0" for key in keys)])


@given(st.lists(LONGS, unique=True, max_size=200), st.lists(LONGS, max_size=50))
def test_a_tagged_index_finds_the_row_of_every_hash(hashes: list[int], others: list[int]) -> None:
    rows = np.arange(len(hashes), dtype=np.int32)[::-1]
    index = TaggedIndex.of(np.array(hashes, np.int64), rows)
    assert index is not None
    assert (index.find(np.array(hashes, np.int64)) == rows).all()
    found = index.find(np.array(others, np.int64)).tolist()
    assert all(row in {*rows.tolist(), MISS} for row in found)
    assert all(row == rows[hashes.index(one)] for one, row in zip(others, found, strict=True) if one in hashes)


def test_tags_that_a_search_could_confuse_are_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tags, "mixed", lambda values: values)
    beside, far = np.array([7, 1 << 32 | 7]), np.array([7, 1 << 63 | 7], np.uint64).view(np.int64)
    rows = np.arange(2, dtype=np.int32)
    assert TaggedIndex.of(beside, rows) is None
    index = TaggedIndex.of(far, rows)
    assert index is not None
    assert index.find(far).tolist() == [0, 1]
    monkeypatch.setattr(tags, "_meet_alike", lambda *_: True)
    check(pa.string(), ["a", "b", "c"], ["c", "d", "", "a"])


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
        f"lookup: 'k' is {row.type}, and 'code' of reference r.csv is {key.type}, which cannot be compared "
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
    assert found(known, k=pa.array([1, 2, 3])) == [0, 1, MISS]


@given(st.lists(st.none() | st.integers(-9, 9).map(str) | st.sampled_from(["N/A", " 1", "1.5"]), max_size=30))
def test_text_keys_that_are_none_of_the_rows_type_match_nothing(keys: list[str | None]) -> None:
    numbers = [None if key is None or not key.lstrip("-").isdigit() else int(key) for key in keys]
    assume(any(number is not None for number in numbers) or not any(keys))
    asked = [*range(-9, 10), None]
    assert found(reference({"k": pa.array(keys, pa.string())}, text_keys=True), k=pa.array(asked, pa.int64())) == (
        expected(numbers, asked)
    )


def test_text_keys_none_or_too_few_of_which_are_of_the_rows_type_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as refused:
        found(reference({"k": pa.array(["AT", None, "CH"])}, text_keys=True), k=pa.array([1]))
    assert str(refused.value).startswith(
        "lookup: the rows' key is int64, and no value of column 'k' of reference r.csv is one: "
    )
    monkeypatch.setattr(keys_module, "MISFITS_MAX", 3)
    assert found(reference({"k": pa.array(["a", "b", "c", "1"])}, text_keys=True), k=pa.array([1])) == [3]
    with pytest.raises(ConfigError, match="more than 3 values of column 'k' of reference r.csv are none: "):
        found(reference({"k": pa.array(["a", "b", "c", "d", "1"])}, text_keys=True), k=pa.array([1]))


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
