"""The transform `clean_data`: every text is clean, nothing else changes, and no row goes uncounted."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.graph import Edge
from conveyord.operators.transform_clean_data import CleanDataTransform
from tests.engine.graph_rig import World, numbered, pipeline, run_now, sink, source, transform
from tests.engine.transform_rig import LAYOUTS, batch, made, rows, texts

TEXTS = st.none() | st.text(" \t\u00a0\u2003aÄß", max_size=4) | st.text(max_size=3)
CASES = {"keep": lambda text: text, "lower": str.lower, "upper": str.upper}


def cleaned(data: pa.RecordBatch, **options: Any) -> pa.RecordBatch:
    return made(CleanDataTransform, **options).apply(data)


def clean(value: Any, *, trim: bool = True, empty: bool = True, case: str = "keep") -> Any:
    """The oracle."""
    if isinstance(value, dict):
        return {name: clean(each, trim=trim, empty=empty, case=case) for name, each in value.items()}
    if isinstance(value, list):
        return [clean(each, trim=trim, empty=empty, case=case) for each in value]
    if isinstance(value, tuple):
        return (value[0], clean(value[1], trim=trim, empty=empty, case=case))
    if not isinstance(value, str):
        return value
    value = CASES[case](value.strip() if trim else value)
    return None if empty and not value else value


@given(
    st.lists(TEXTS, max_size=6),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["keep", "lower"]),
    st.sampled_from(LAYOUTS),
)
def test_text_becomes_what_plain_python_makes_of_it(
    values: list[str | None], trim: bool, empty: bool, case: str, layout: str
) -> None:
    data = batch(s=texts(values, layout), n=pa.array(range(len(values)), pa.int64())).slice(1)
    done = cleaned(data, trim_strings=trim, empty_to_null=empty, normalize_case=case)
    done.validate(full=True)
    expected = [clean(value, trim=trim, empty=empty, case=case) for value in values[1:]]
    assert [caseless(text) for text in done.column("s").to_pylist()] == [caseless(text) for text in expected]
    assert done.column("n").equals(data.column("n"))


def caseless(text: str | None) -> str | None:
    """Arrow writes each letter small by itself; Python looks at its neighbours, and at what has no one letter."""
    return (
        None if text is None else text.replace("\u0307", "").replace("\u03c2", "\u03c3").lower().replace("\u0307", "")
    )


NESTED = pa.schema(
    [
        ("o", pa.struct([("s", pa.string()), ("n", pa.int64()), ("l", pa.list_(pa.string()))])),
        ("l", pa.list_(pa.struct([("s", pa.large_string())]))),
        ("m", pa.map_(pa.string(), pa.string())),
        ("d", pa.large_list(pa.dictionary(pa.int32(), pa.string()))),
    ]
)
NESTED_VALUES = st.fixed_dictionaries(
    {
        "o": st.none()
        | st.fixed_dictionaries({"s": TEXTS, "n": st.none() | st.integers(0, 5), "l": st.none() | st.lists(TEXTS)}),
        "l": st.none() | st.lists(st.none() | st.fixed_dictionaries({"s": TEXTS}), max_size=3),
        "m": st.none() | st.lists(st.tuples(st.sampled_from(["a", " b "]), TEXTS), max_size=3),
        "d": st.none() | st.lists(TEXTS, max_size=3),
    }
)


@given(st.lists(NESTED_VALUES, max_size=5), st.integers(0, 2))
def test_text_is_cleaned_wherever_it_stands_but_not_in_keys(values: list[dict[str, Any]], cut: int) -> None:
    data = pa.RecordBatch.from_arrays(
        [pa.array([value[field.name] for value in values], field.type) for field in NESTED], schema=NESTED
    ).slice(cut)
    done = cleaned(data)
    done.validate(full=True)
    assert done.to_pylist() == [clean(value) for value in values[cut:]]


def test_what_lies_under_a_null_object_stays_null() -> None:
    hidden = pa.StructArray.from_arrays([pa.array([" a ", "b"])], names=["x"], mask=pa.array([False, True]))
    assert cleaned(batch(s=hidden)).to_pylist() == [{"s": {"x": "a"}}, {"s": None}]


def test_columns_without_text_keep_their_buffers_and_batches_may_be_empty() -> None:
    data = batch(
        m=pa.array([Decimal("1.5"), None], pa.decimal128(9, 2)),
        at=pa.array([1, None], pa.timestamp("us", "UTC")),
        b=pa.array([b" x ", None]),
        n=pa.nulls(2),
        s=pa.nulls(2, pa.string()),
    )
    assert cleaned(data).equals(data)
    assert cleaned(data).column("at").buffers()[1].address == data.column("at").buffers()[1].address
    assert cleaned(data.slice(0, 0)).schema == data.schema
    assert cleaned(data.select([]), remove_nulls=True).num_rows == 2


def test_only_named_columns_and_fields_are_cleaned() -> None:
    data = rows({"a": " x ", "b": " y ", "o": {"c": " z ", "d": ""}, "l": [{"c": " v "}]})
    assert cleaned(data, columns=["b", "o.c", "l.c"]).to_pylist() == [
        {"a": " x ", "b": "y", "o": {"c": "z", "d": ""}, "l": [{"c": "v"}]}
    ]


def test_what_did_not_fit_a_column_is_cleaned_with_it_and_is_no_null() -> None:
    data = rows(
        {"tel": 1, "tel__string": None, "o": {"c": "a", "c__json": None}, "o__string": None, "b": " b"},
        {"tel": None, "tel__string": " x ", "o": {"c": None, "c__json": ' "q" '}, "o__string": None, "b": " b"},
        {"tel": None, "tel__string": "  ", "o": None, "o__string": " Ann ", "b": " b"},
    )
    done = cleaned(data, columns=["tel", "o.c"])
    assert done.to_pylist() == [
        {"tel": 1, "tel__string": None, "o": {"c": "a", "c__json": None}, "o__string": None, "b": " b"},
        {"tel": None, "tel__string": "x", "o": {"c": None, "c__json": '"q"'}, "o__string": None, "b": " b"},
        {"tel": None, "tel__string": None, "o": None, "o__string": "Ann", "b": " b"},
    ]
    for wanted in (["tel"], ["o.c"], True):
        assert cleaned(data, remove_nulls=wanted).num_rows == 2
    assert cleaned(data, remove_nulls=["o", "b"]).num_rows == 3
    assert cleaned(data, remove_nulls=["tel__string"]).num_rows == 1


def test_provenance_is_left_alone() -> None:
    data = batch(_source=texts(["In"], "dictionary"), _partition=texts([" My File.jsonl"], "dictionary"), s=[" X "])
    done = cleaned(data, normalize_case="lower")
    assert done.to_pylist() == [{"_source": "In", "_partition": " My File.jsonl", "s": "x"}]
    assert done.schema == data.schema


@given(
    st.lists(st.fixed_dictionaries({"a": TEXTS, "b": st.none() | st.integers(0, 3), "o": NESTED_VALUES}), max_size=6)
)
def test_rows_with_a_null_go_to_the_other_output_and_no_row_is_lost(values: list[dict[str, Any]]) -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.int64()), ("o", pa.struct(list(NESTED)[:1]))])
    values = [{**value, "o": {"o": value["o"]["o"]}, "b": value["b"]} for value in values]
    data = pa.RecordBatch.from_pylist(values, schema=schema)
    listened = frozenset({"dropped"})
    expected = [clean(value) for value in values]
    for remove_nulls, looks in (
        (True, lambda row: [row["a"], row["b"]]),
        (["b"], lambda row: [row["b"]]),
        (["o.o.s", "a"], lambda row: [row["a"], (row["o"]["o"] or {}).get("s")]),
        (False, lambda row: []),
    ):
        work = made(CleanDataTransform, listened=listened, remove_nulls=remove_nulls)
        stay, others = work.apply_all(data)
        assert stay.schema == others["dropped"].schema == data.schema
        assert stay.to_pylist() == [row for row in expected if None not in looks(row)]
        assert others["dropped"].to_pylist() == [row for row in expected if None in looks(row)]
        assert made(CleanDataTransform, remove_nulls=remove_nulls).apply_all(data)[1] == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nulls_in_any_layout_are_found(layout: str) -> None:
    data = batch(s=texts(["x", None, " "], layout), v=pa.array(["a", "b", "c"], pa.string_view()))
    assert cleaned(data, remove_nulls=["s"]).to_pylist() == [{"s": "x", "v": "a"}]
    hidden = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([None, 7]))
    assert cleaned(batch(d=hidden), remove_nulls=True).to_pylist() == [{"d": 7}]
    assert cleaned(batch(n=pa.nulls(2)), remove_nulls=["n.x.y"]).num_rows == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["aa"]}, r"clean_data\.columns names a column 'aa' that is not there; did you mean 'a'\?"),
        (
            {"remove_nulls": ["zz"]},
            r"clean_data\.remove_nulls names a column 'zz' that is not there; the columns are a, l, o",
        ),
        ({"remove_nulls": ["l.x"]}, r"clean_data\.remove_nulls names a column 'l\.x' that is not there"),
        ({"columns": ["o", "o.x"]}, r"clean_data\.columns names 'o' and 'o\.x', which is a part of it"),
    ],
)
def test_columns_that_are_not_there_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cleaned(rows({"a": "x", "l": [{"x": 1}], "o": {"x": "1"}}), **options)


@pytest.mark.parametrize(
    ("options", "mistakes"),
    [
        ({"remove_nulls": []}, {"remove_nulls": "the list is empty; name columns, or write true or false"}),
        (
            {"columns": ["a"], "trim_strings": False, "empty_to_null": False},
            {"columns": "nothing is to be done to these columns: trim_strings and empty_to_null are off"},
        ),
        ({"remove_nulls": True, "trim_strings": False, "empty_to_null": False}, {}),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], mistakes: dict[str, str]) -> None:
    assert CleanDataTransform.mistakes(CleanDataTransform.Config(**options)) == mistakes


def test_dropped_rows_are_counted_and_can_go_another_way(tmp_path: Path) -> None:
    table = [{**row, "k": [" a ", "", None][row["n"] % 3]} for row in numbered(30)]
    world = World({"t": table})
    stages = [
        source(batch_rows=7),
        transform("c", "clean_data", remove_nulls=["k"]),
        transform("a", "brittle", poison=[5]),
        sink("good"),
        sink("rest"),
    ]
    edges = [Edge("in", "c"), Edge("c", "a"), Edge("a", "good"), Edge("c", "rest", output="dropped")]
    outcome = run_now(world, pipeline(stages, edges), tmp_path)
    assert outcome.failed() == []
    good, rest = (world.kept("default/p", name).rows for name in ("good", "rest"))
    assert [(row["n"], row["k"]) for row in good] == [(n, "a") for n in range(0, 30, 3) if n % 10 != 5]
    assert [(row["n"], row["k"]) for row in rest] == [(n, None) for n in range(30) if n % 3]
    assert sorted(stored.letter.key.offset for stored in outcome.letters_of()) == [150]
