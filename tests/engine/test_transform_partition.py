"""The transform `partition`: a path that Hive would have written, and that leads nowhere else."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.engine.batch_transform import BadRows
from conveyord.operators.transform_partition import PartitionTransform
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.transform_rig import LAYOUTS, batch, made, rows, texts

NULL = "__HIVE_DEFAULT_PARTITION__"
AT = dt.datetime(2026, 1, 31, 23, 5, 9, 123456)


def paths(data: pa.RecordBatch, *partition_by: str, **options: Any) -> list[str]:
    result = made(PartitionTransform, partition_by=list(partition_by), **options).apply(data)
    result.validate(full=True)
    assert result.drop_columns(["_partition_path"]).to_pydict() == data.to_pydict()
    return result.column("_partition_path").to_pylist()


def test_without_a_format_it_is_named_as_iceberg_names_it() -> None:
    data = rows({"c": "DE", "at": AT, "n": 5}, {"c": None, "at": None, "n": None})
    assert paths(data, "c", "year(at)", "n") == ["c=DE/at_year=2026/n=5", f"c={NULL}/at_year={NULL}/n={NULL}"]
    assert (
        paths(data, "month(at)", "day(at)", "hour(at)")[0] == "at_month=2026-01/at_day=2026-01-31/at_hour=2026-01-31-23"
    )


def test_a_format_says_how_it_is_written() -> None:
    data = rows({"c": "DE", "at": AT, "o": {"x": True}})
    assert paths(data, "c", "day(at)", partition_format="country={c}/dt={at:%Y-%m-%d}") == ["country=DE/dt=2026-01-31"]
    assert paths(data, "at", "o.x", partition_format="{{{o.x}}}/{at:%Y/%m/%d}/{at:%H-%M-%S}") == [
        "{true}/2026/01/31/23-05-09"
    ]
    assert paths(data, "at", partition_format="{at:%T}") == ["23%3A05%3A09"]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (pa.array([Decimal("1.50")], pa.decimal128(9, 2)), "1.50"),
        (pa.array([dt.date(2026, 1, 2)]), "2026-01-02"),
        (pa.array([dt.datetime(2026, 1, 2, 3)], pa.timestamp("us", "UTC")), "2026-01-02T03%3A00%3A00Z"),
        (pa.array([1.5]), "1.5"),
        (pa.array([b"\xff"]), "%2Fw%3D%3D"),
        (pa.nulls(1), NULL),
        (pa.array([""]), NULL),
        (pa.array([".."]), "%2E%2E"),
        (pa.array(["a/b=c d%é"]), "a%2Fb%3Dc d%25é"),
    ],
)
def test_any_plain_value_may_stand_in_a_path(array: pa.Array, text: str) -> None:
    assert paths(batch(v=array), "v") == [f"v={text}"]


@given(st.lists(st.one_of(st.none(), st.text(max_size=6), st.sampled_from(["..", ".", "/", "a/../b"])), max_size=8))
def test_every_path_stays_below_its_directory_and_tells_the_value(values: list[str | None]) -> None:
    for layout in LAYOUTS:
        data = batch(a=texts(values, layout))
        for value, path in zip(values, paths(data.slice(0), "a", partition_format="{a}"), strict=True):
            assert "/" not in path
            assert path not in ("", ".", "..")
            assert not re.search(r"[\x00-\x1f\x7f]", path)
            assert unquote(path, errors="strict") == (value or NULL)


@given(
    st.lists(st.one_of(st.none(), st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))), max_size=8),
    st.sampled_from(["%Y", "%Y-%m", "%Y-%m-%d", "%Y%m%d%H", "%H-%M", "%Y-%j", "%G-%V", "%G", "%V", "%u"]),
    st.sampled_from([pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ms", "Europe/Berlin"), pa.date32()]),
)
def test_times_are_written_in_utc_as_strftime_does(
    values: list[dt.datetime | None], time: str, kind: pa.DataType
) -> None:
    values = [
        value if value is None else value.replace(microsecond=value.microsecond // 1000 * 1000) for value in values
    ]
    if pa.types.is_date(kind):
        values = [value if value is None else dt.datetime(value.year, value.month, value.day) for value in values]
        array = pa.array([None if value is None else value.date() for value in values], kind)
    elif kind.tz is None:
        array = pa.array(values, kind)
    else:
        array = pa.array([None if v is None else v.replace(tzinfo=dt.UTC) for v in values], kind)
    expected = [NULL if value is None else value.strftime(time) for value in values]
    assert paths(batch(t=array), "t", partition_format=f"{{t:{time}}}") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"partition_by": ["bucket(4, a)"]},
            "partition.partition_by: 'bucket(4, a)' is not known; write a column, year(",
        ),
        ({"partition_by": ["a", "a"]}, "partition.partition_by: an expression stands there twice"),
        ({"partition_by": []}, "at least 1 item"),
        ({"partition_by": ["a"], "partition_format": "x"}, "names no column"),
        ({"partition_by": ["a"], "partition_format": "{a"}, "is no format: expected '}'"),
        ({"partition_by": ["a"], "partition_format": "{a!r}"}, "holds a {} that is not a column's name"),
        ({"partition_by": ["a"], "partition_format": "{}"}, "holds a {} that is not a column's name"),
        ({"partition_by": ["a"], "partition_format": "/{a}"}, "makes no path"),
        ({"partition_by": ["a"], "partition_format": "{a}/../x"}, "makes no path"),
        ({"partition_by": ["a"], "partition_format": "{a:%Q}"}, "'%Q' is no format of a time: %Q is not known"),
        ({"partition_by": ["a"], "partition_format": "{a:day}"}, "'day' is no format of a time: it has none"),
        (
            {"partition_by": ["a", "b"], "partition_format": "{a}"},
            "partition_by names 'b' and partition_format does not; they must name the same columns",
        ),
        (
            {"partition_by": ["a"], "partition_format": "{a}/{c}"},
            "partition_format names 'c' and partition_by does not; they must name the same columns",
        ),
    ],
)
def test_what_makes_no_path_is_refused_before_the_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        made(PartitionTransform, **options)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"partition_by": ["coutry"]},
            "partition_by names a column 'coutry' that is not there; did you mean 'country'?",
        ),
        ({"partition_by": ["o"]}, "partition_by: 'o' is of type struct; name a field in it"),
        ({"partition_by": ["day(country)"]}, "partition_by: 'country' is of type string, no date or time; make one"),
        (
            {"partition_by": ["country"], "column": "o"},
            "partition.column: there is a column 'o' already; choose another name",
        ),
    ],
)
def test_what_does_not_fit_the_rows_stops_the_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        made(PartitionTransform, **options).apply(rows({"country": "DE", "o": {"x": 1}}))
    assert message in str(refused.value)


def test_a_batch_without_rows_gets_the_column_too() -> None:
    data = rows({"c": "DE", "at": AT})
    assert paths(data.slice(0, 0), "c", "day(at)") == []
    assert paths(batch(c=pa.array([None, None], pa.string())), "c") == [f"c={NULL}"] * 2


def test_a_name_longer_than_file_systems_take_is_a_bad_row() -> None:
    data = batch(a=pa.array(["x" * 253, "x" * 254, "é" * 126]), b=pa.array(["y" * 100] * 3))
    with pytest.raises(
        BadRows, match="1 of 3 rows are bad; the first is row 1 of the batch: partition_by: a name"
    ) as bad:
        paths(data, "a", "b")
    assert [poison.row for poison in bad.value.poison] == [1]
    assert bad.value.good[0].column("b").to_pylist() == ["y" * 100] * 2


def test_a_name_is_measured_in_bytes() -> None:
    with pytest.raises(BadRows) as bad:
        paths(batch(a=pa.array(["é" * 126, "é" * 127, "x" * 253])), "a")  # of 254, 256 and 255 bytes with `a=`
    assert [poison.row for poison in bad.value.poison] == [1]


def test_the_year_of_a_week_is_not_that_of_its_day() -> None:
    assert paths(batch(at=pa.array([dt.date(2024, 12, 30)])), "at", partition_format="{at:%G}") == ["2025"]


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("ms", "Europe/Berlin"), pa.date32()])
@pytest.mark.parametrize("expression", ["year(t)", "month(t)", "day(t)", "hour(t)"])
def test_a_time_in_a_year_that_no_path_can_tell_is_a_bad_row(kind: pa.DataType, expression: str) -> None:
    days = [-719_163, -719_162, 0, 2_932_896, 2_932_897, 2**31 - 1, -(2**31)]
    far = [True, False, False, False, True, True, True]
    data = batch(
        n=pa.array(range(7)), t=pa.array(days, pa.int32()).cast(pa.date32()).cast(pa.timestamp("s")).cast(kind)
    )
    with pytest.raises(BadRows) as bad:
        paths(data, expression)
    assert [poison.row for poison in bad.value.poison] == [row for row in range(7) if far[row]]
    assert "partition_by: 't' is +10000-01-01" in str(bad.value.poison[1].error)
    assert "a path can tell the years 0001 to 9999 only" in str(bad.value.poison[1].error)
    made = bad.value.good[0]
    assert made.column("n").to_pylist() == [1, 2, 3]
    assert [path.split("=")[1][:4] for path in made.column("_partition_path").to_pylist()] == ["0001", "1970", "9999"]


def test_a_row_may_be_bad_for_two_reasons_and_is_once() -> None:
    times = pa.array([0, 2**40, 2**40], pa.int64()).cast(pa.timestamp("s"))
    with pytest.raises(BadRows) as bad:
        paths(batch(a=pa.array(["x" * 300, "x" * 300, "x"]), t=times), "a", "day(t)")
    assert [poison.row for poison in bad.value.poison] == [0, 1, 2]
    assert [str(poison.error).split(" and ")[0] for poison in bad.value.poison] == [
        "partition_by: a name in the path has more than 255 bytes; shorten the value before",
        "partition_by: 't' is +36812-02-20T00:36:16",
        "partition_by: 't' is +36812-02-20T00:36:16",
    ]


def test_in_a_run_rows_get_their_path_and_bad_ones_become_letters(tmp_path: Path) -> None:
    table = numbered(9)
    table[4]["k"] = "x" * 300
    world = World({"t": table})
    step = transform("partition", "partition", partition_by=["k", "o.x"])
    outcome = run_now(world, line(source(), step, sink()), tmp_path)
    assert outcome.failed() == []
    kept = world.kept("default/p", "out").rows
    assert kept == [{**row, "_partition_path": f"k={row['k']}/o.x={row['n']}"} for row in table if row["n"] != 4]
    (stored,) = outcome.letters_of()
    assert (stored.letter.key.offset, stored.letter.code) == (40, "BATCH_FAILED")
