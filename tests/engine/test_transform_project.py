"""The transform `project`: exactly the named columns and fields stay, or exactly they go."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.operators.transform_project import ProjectTransform
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.transform_rig import LAYOUTS, batch, made, rows, texts

NESTED = rows(
    {"a": 1, "b": {"c": 1, "d": {"e": "x", "f": 2}}, "l": [{"x": 1, "y": 2}, None], "b.c": "dotted"},
    {"a": None, "b": None, "l": None, "b.c": None},
    {"a": 3, "b": {"c": None, "d": None}, "l": [], "b.c": "z"},
)
PATHS = ("a", "b", "b.d", "b.d.e", "b.d.f", "l", "l.x", "l.y", "b.c")


def kept(*names: str, **options: Any) -> pa.RecordBatch:
    return made(ProjectTransform, columns=names, **options).apply(NESTED)


def left(*names: str, **options: Any) -> pa.RecordBatch:
    return made(ProjectTransform, drop=names, **options).apply(NESTED)


def picked(value: Any, paths: list[tuple[str, ...]]) -> Any:
    """The oracle: what `paths` leave of a value."""
    if () in paths or value is None:
        return value
    if isinstance(value, list):
        return [picked(each, paths) for each in value]
    names = list(dict.fromkeys(path[0] for path in paths))
    return {name: picked(value[name], [path[1:] for path in paths if path[0] == name]) for name in names}


def without(value: Any, paths: list[tuple[str, ...]]) -> Any:
    """The oracle: what is left of a value without `paths`; an empty dict stands for nothing."""
    if isinstance(value, list):
        return [without(each, paths) for each in value]
    if not isinstance(value, dict):
        return value
    done = {}
    for name, each in value.items():
        own = [path[1:] for path in paths if path[0] == name]
        if () not in own:
            done[name] = without(each, own)
    return done


def test_columns_stay_in_the_order_they_are_named() -> None:
    assert kept("l", "a").schema.names == ["l", "a"]
    assert kept("l", "a").equals(NESTED.select(["l", "a"]))


def test_fields_stay_in_their_objects_and_null_objects_null() -> None:
    assert kept("b.d.f", "a", "b.d.e").to_pylist() == [
        {"b": {"d": {"f": 2, "e": "x"}}, "a": 1},
        {"b": None, "a": None},
        {"b": {"d": None}, "a": 3},
    ]
    assert kept("l.y").to_pylist() == [{"l": [{"y": 2}, None]}, {"l": None}, {"l": []}]


def test_a_column_with_a_dot_in_its_name_is_meant_before_a_field() -> None:
    assert kept("b.c").to_pydict() == {"b.c": ["dotted", None, "z"]}


def test_dropping_leaves_the_others_as_they_were() -> None:
    assert left("b.d.e", "l.x", "b.c").to_pylist() == [
        {"a": 1, "b": {"c": 1, "d": {"f": 2}}, "l": [{"y": 2}, None]},
        {"a": None, "b": None, "l": None},
        {"a": 3, "b": {"c": None, "d": None}, "l": []},
    ]


def test_an_object_that_loses_its_last_field_goes_as_a_whole() -> None:
    assert left("b.d.e", "b.d.f", "l.x", "l.y").schema.field("b").type == pa.struct([("c", pa.int64())])
    assert left("b.d.e", "b.d.f", "l.x", "l.y").schema.names == ["a", "b", "b.c"]


SPLIT = rows(
    {
        "id": 1,
        "tel__string": "x",
        "tel": None,
        "tel__string__json": "[1]",
        "u": {"tel": 1, "tel__json": None, "n": 2},
        "u__string": "Ann",
        "u__list": [{"tel": 5, "n": 6}],
        "u__map": [],
        "tel__strings": "y",
    }
)


def test_what_did_not_fit_a_column_stays_and_goes_with_it() -> None:
    def of(**options: Any) -> list[dict[str, Any]]:
        done = made(ProjectTransform, **options).apply(SPLIT)
        done.validate(full=True)
        return done.to_pylist()

    tel = {"tel": None, "tel__string": "x", "tel__string__json": "[1]"}
    user = {"u": {"tel": 1, "tel__json": None, "n": 2}, "u__string": "Ann", "u__list": [{"tel": 5, "n": 6}]}
    rest = {"u__map": [], "tel__strings": "y"}
    assert of(columns=["tel", "id"]) == [{**tel, "id": 1}]
    assert list(of(columns=["tel", "id"])[0]) == [*tel, "id"]
    assert of(drop=["tel"]) == [{"id": 1, **user, **rest}]
    assert of(drop=["tel__string"]) == [{"id": 1, "tel": None, **user, **rest}]
    assert of(columns=["tel__string", "id", "tel"]) == [{**tel, "id": 1}]
    assert of(columns=["u"]) == [{**user, "u__map": []}]
    assert of(drop=["u", "tel"]) == [{"id": 1, "tel__strings": "y"}]


def test_what_stands_where_an_object_should_be_stays_and_goes_with_its_fields() -> None:
    kept_fields = made(ProjectTransform, columns=["u.tel"]).apply(SPLIT)
    assert kept_fields.to_pylist() == [
        {"u": {"tel": 1, "tel__json": None}, "u__string": "Ann", "u__list": [{"tel": 5}], "u__map": []}
    ]
    left_fields = made(ProjectTransform, drop=["u.tel"]).apply(SPLIT)
    assert left_fields.select(["u", "u__list"]).to_pylist() == [{"u": {"n": 2}, "u__list": [{"n": 6}]}]
    assert left_fields.schema.names == ["id", "tel__string", "tel", "tel__string__json", "u", "u__list", "tel__strings"]
    assert made(ProjectTransform, drop=["u.n", "u.tel"]).apply(SPLIT).schema.names == [
        "id", "tel__string", "tel", "tel__string__json", "tel__strings"
    ]  # fmt: skip


@given(st.lists(st.sampled_from(PATHS), min_size=1, unique=True), st.integers(0, 3))
def test_keeping_and_dropping_do_what_plain_python_does(names: list[str], cut: int) -> None:
    paths = [("b.c",) if name == "b.c" else tuple(name.split(".")) for name in names]
    data = NESTED.slice(cut)
    overlap = any(one != other and other[: len(one)] == one for one in paths for other in paths)
    for option, oracle in (("columns", picked), ("drop", without)):
        work = made(ProjectTransform, **{option: names})
        if overlap:
            with pytest.raises(ConfigError, match=rf"project\.{option} names .* which is a part of it"):
                work.apply(data)
            continue
        done = work.apply(data)
        done.validate(full=True)
        assert done.num_rows == data.num_rows
        expected = [oracle(row, paths) for row in data.to_pylist()]
        gone = {
            name: {tuple(each.split(".")) for each in names} >= {(name, *field) for field in fields}
            for name, fields in {"l": [("x",), ("y",)]}.items()
        }
        if option == "drop" and gone["l"]:
            expected = [{name: value for name, value in row.items() if name != "l"} for row in expected]
        if option == "drop" and {"b.d.e", "b.d.f"} <= set(names):
            for row in expected:
                if row.get("b"):
                    row["b"].pop("d", None)
        assert done.to_pylist() == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_any_type_keep_their_buffers(layout: str) -> None:
    data = batch(
        s=texts(["x", None], layout),
        m=pa.array([Decimal("1.5"), None], pa.decimal128(9, 2)),
        n=pa.nulls(2),
        at=pa.array([1, None], pa.timestamp("us", "UTC")),
        p=pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    )
    done = made(ProjectTransform, columns=["p", "at", "n", "m", "s"]).apply(data)
    assert done.equals(data.select(["p", "at", "n", "m", "s"]))
    for name in ("m", "at"):
        assert done.column(name).buffers()[1].address == data.column(name).buffers()[1].address


def test_a_batch_may_have_no_rows_and_keeps_its_rows_without_columns() -> None:
    assert made(ProjectTransform, columns=["b.d"]).apply(NESTED.slice(0, 0)).schema.names == ["b"]
    assert left("a", "b", "l", "b.c").num_rows == 3
    assert left("a", "b", "l", "b.c").num_columns == 0
    assert kept("nowhere", on_missing="ignore").num_rows == 3


def test_a_stage_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="project needs columns, what stays, or drop, what goes"):
        made(ProjectTransform)


def test_what_lies_in_a_column_without_a_type_is_neither_missing_nor_taken() -> None:
    data = batch(a=pa.nulls(2), l=pa.array([[None], None], pa.list_(pa.null())))
    assert made(ProjectTransform, columns=["a.b.c", "l.x"]).apply(data).equals(data)
    assert made(ProjectTransform, drop=["a.b.c", "l.x"]).apply(data).equals(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aa", r"project\.columns names a column 'aa' that is not there; did you mean 'a'\?"),
        ("zzz", r"project\.columns names a column 'zzz' that is not there; the columns are a, b, l, b\.c"),
        ("b.dd", r"'b\.dd' that is not there; did you mean 'b\.d'\?"),
        ("a.b", r"project\.columns names a column 'a\.b' that is not there"),
    ],
)
def test_a_missing_column_is_told_with_what_is_like_it(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kept("a", name)
    assert kept("a", name, on_missing="ignore").schema.names == ["a"]
    assert left("a", name, on_missing="ignore").schema.names == ["b", "l", "b.c"]


@pytest.mark.parametrize(
    ("options", "mistakes"),
    [
        ({"drop": ["b"]}, {}),
        ({"columns": ["a"], "drop": ["b"]}, {"drop": "project takes `columns` or `drop`, not both"}),
        ({"drop": ["a", "b", "a"]}, {("drop", 2): "'a' is named twice"}),
        ({"columns": ["a", "b"]}, {}),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], mistakes: dict[str, str]) -> None:
    assert ProjectTransform.mistakes(ProjectTransform.Config(**options)) == mistakes
    if mistakes:
        with pytest.raises(ConfigError):
            made(ProjectTransform, **options)


def test_rows_are_told_apart_behind_it(tmp_path: Path) -> None:
    """The records of rows that fail later are found through it."""
    world = World({"t": numbered(30)})
    steps = (transform("p", "project", drop=["k", "o"]), transform("a", "brittle", poison=[5]))
    outcome = run_now(world, line(source(), *steps, sink()), tmp_path)
    assert [stored.letter.key.offset for stored in outcome.letters_of()] == [50, 150, 250]
    assert world.kept("default/p", "out").rows == [{"n": n, "v": n % 10} for n in range(30) if n % 10 != 5]
