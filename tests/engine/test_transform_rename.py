"""The transform `rename`: other names, the same values in the same places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.operators.transform_rename import RenameTransform, snake
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.transform_rig import LAYOUTS, batch, made, rows, texts

NESTED = rows(
    {"userId": 1, "Address": {"zipCode": "x", "geo": {"Lat": 1.5}}, "Items": [{"itemSku": 1}, None], "a.b": 2},
    {"userId": None, "Address": None, "Items": None, "a.b": None},
)


def renamed(data: pa.RecordBatch = NESTED, **options: Any) -> pa.RecordBatch:
    return made(RenameTransform, **options).apply(data)


@given(st.permutations("abcde"), st.integers(0, 2))
def test_all_names_are_given_at_once(names: list[str], cut: int) -> None:
    first, second = ({name: base + place for place, name in enumerate("abcde")} for base in (0, 10))
    data = rows(first, second).slice(cut)
    done = renamed(data, columns=dict(zip("abcde", names, strict=True)))
    assert done.schema.names == names
    assert [column.to_pylist() for column in done.columns] == [column.to_pylist() for column in data.columns]


def test_fields_are_renamed_in_their_objects_and_lists() -> None:
    done = renamed(
        columns={"Address.zipCode": "zip", "Address.geo": "at", "Address.geo.Lat": "lat", "Items.itemSku": "sku"}
    )
    assert done.to_pylist() == [
        {"userId": 1, "Address": {"zip": "x", "at": {"lat": 1.5}}, "Items": [{"sku": 1}, None], "a.b": 2},
        {"userId": None, "Address": None, "Items": None, "a.b": None},
    ]


def test_what_did_not_fit_a_column_is_renamed_with_it() -> None:
    data = rows(
        {
            "tel__string": "x",
            "tel": None,
            "tel__json__json": "1",
            "U": {"nm": 1, "nm__json": "[]"},
            "U__string": "Ann",
            "U__list": [{"nm": 1}],
        }
    )
    done = renamed(data, columns={"tel": "phone", "U.nm": "name"})
    assert done.to_pylist() == [
        {
            "phone__string": "x",
            "phone": None,
            "phone__json__json": "1",
            "U": {"name": 1, "name__json": "[]"},
            "U__string": "Ann",
            "U__list": [{"name": 1}],
        }
    ]
    assert renamed(data, columns={"U": "user", "tel__string": "text", "tel": "t"}, case="lower").schema.names == [
        "text", "t", "t__json__json", "user", "user__string", "user__list"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="'tel__string' and 'b__string' would both be called 'b__string'"):
        renamed(rows({"tel": 1, "tel__string": "", "b__string": ""}), columns={"tel": "b"})


def test_a_stage_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="rename needs columns, with new names, or a case other than keep"):
        made(RenameTransform)


def test_a_column_with_a_dot_in_its_name_is_meant_before_a_field() -> None:
    data = rows({"a.b": 1, "a": {"b": 2}})
    assert renamed(data, columns={"a.b": "c"}).to_pylist() == [{"c": 1, "a": {"b": 2}}]
    assert renamed(data, columns={"a.b": "a.c"}).to_pylist() == [{"a.c": 1, "a": {"b": 2}}]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "lower",
            {"userid": 1, "address": {"zipcode": "x", "geo": {"lat": 1.5}}, "items": [{"itemsku": 1}, None], "a.b": 2},
        ),
        (
            "snake",
            {
                "user_id": 1,
                "address": {"zip_code": "x", "geo": {"lat": 1.5}},
                "items": [{"item_sku": 1}, None],
                "a_b": 2,
            },
        ),
        (
            "keep",
            {"ID": 1, "Address": {"zipCode": "x", "geo": {"Lat": 1.5}}, "Items": [{"itemSku": 1}, None], "a.b": 2},
        ),
    ],
)
def test_case_is_for_names_at_every_depth_but_not_for_given_ones(case: str, expected: dict[str, Any]) -> None:
    if case != "keep":
        assert renamed(case=case).slice(0, 1).to_pylist() == [expected]
    names = ["ID", *list(expected)[1:]]
    assert renamed(case=case, columns={"userId": "ID"}).schema.names == names


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("userID", "user_id"),
        ("User ID", "user_id"),
        ("HTTPServer", "http_server"),
        ("fooBar2Baz", "foo_bar2_baz"),
        ("Total (USD)", "total_usd"),
        ("x-y.z", "x_y_z"),
        ("Ärger Über", "ärger_über"),
        ("_offset", "_offset"),
        ("rating__double", "rating__double"),
        ("!!!", "!!!"),
        ("", ""),
    ],
)
def test_snake_parts_words_and_keeps_underscores(name: str, small: str) -> None:
    assert snake(name) == small


@given(st.text(max_size=12))
def test_snake_of_snake_changes_nothing(name: str) -> None:
    assert snake(snake(name)) == snake(name)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"a": 1, "b": 2}, {"columns": {"a": "b"}}, "rename: 'a' and 'b' would both be called 'b'; give one of them"),
        ({"a": 1, "A": 2}, {"case": "lower"}, "rename: 'a' and 'A' would both be called 'a'"),
        ({"o": {"aB": 1, "a_b": 2}}, {"case": "snake"}, r"rename: 'o\.aB' and 'o\.a_b' would both be called 'a_b'"),
        ({"l": [{"a": 1, "b": 2}]}, {"columns": {"l.a": "b"}}, r"rename: 'l\.a' and 'l\.b' would both be called 'b'"),
        (
            {"o": {"x": 1}},
            {"columns": {"o.x": "o.y"}},
            r"'o\.x' keeps its place within 'o'; give its new name alone, 'y'",
        ),
        (
            {"abc": 1},
            {"columns": {"abd": "x"}},
            r"rename\.columns names a column 'abd' that is not there; did you mean 'abc'",
        ),
    ],
)
def test_what_cannot_be_is_refused(data: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        renamed(rows(data), **options)


def test_missing_columns_are_passed_over_if_asked() -> None:
    assert (
        renamed(columns={"nowhere": "x", "userId": "id", "Address.no": "y"}, on_missing="ignore").schema.names[0]
        == "id"
    )


@pytest.mark.parametrize(
    ("options", "mistakes"),
    [
        ({"columns": {"a": "b"}}, {}),
        ({"columns": {"a": ""}}, {("columns", "a"): "the new name of 'a' is empty"}),
        ({"case": "snake"}, {}),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], mistakes: dict[str, str]) -> None:
    assert RenameTransform.mistakes(RenameTransform.Config(**options)) == mistakes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_any_type_keep_their_buffers(layout: str) -> None:
    data = batch(
        S=texts(["x", None], layout),
        N=pa.nulls(2),
        At=pa.array([1, None], pa.timestamp("us", "UTC")),
        P=pa.array([[("Key", {"In": 1})], None], pa.map_(pa.string(), pa.struct([("In", pa.int64())]))),
    )
    done = renamed(data, case="lower")
    assert done.schema.names == ["s", "n", "at", "p"]
    assert done.schema.types == data.schema.types
    assert done.column("at").buffers()[1].address == data.column("At").buffers()[1].address
    assert renamed(data.slice(0, 0), case="lower").schema == done.schema
    assert renamed(data.select([]), case="lower").num_rows == 2


def test_rows_are_told_apart_behind_it(tmp_path: Path) -> None:
    """The records of rows that fail later are found through it."""
    world = World({"t": numbered(30)})
    steps = (transform("r", "rename", columns={"n": "v", "v": "n", "o.x": "y"}), transform("a", "brittle", poison=[7]))
    outcome = run_now(world, line(source(), *steps, sink()), tmp_path)
    assert [stored.letter.key.offset for stored in outcome.letters_of()] == [70]
    assert [(row["v"], row["n"], row["o"]["y"]) for row in world.kept("default/p", "out").rows] == [
        (n, n % 10, n) for n in range(30) if n != 7
    ]
