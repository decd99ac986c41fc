"""The transform `cast`: a value becomes exactly its like under the new type, or its row fails."""

from __future__ import annotations

import datetime as dt
import math
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.type_words import type_named
from conveyord.operators.transform_cast import CastTransform
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.transform_rig import LAYOUTS, batch, made, rows, texts

UTC = dt.UTC


def cast_one(value: Any, word: str, kind: pa.DataType | None = None, **options: Any) -> Any:
    """What one value becomes, or the exception that is raised for it."""
    data = batch(x=pa.array([None, value], kind))
    try:
        done = made(CastTransform, columns={"x": word}, **options).apply(data)
    except (BatchError, ConfigError) as error:
        return error
    done.validate(full=True)
    assert done.schema.field("x").type == type_named(word)
    return done.column("x").to_pylist()[1]


def fits(value: Any, word: str, kind: pa.DataType | None = None, **options: Any) -> bool:
    return not isinstance(cast_one(value, word, kind, **options), BatchError)


EXACT = [
    ("12", "long", 12),
    ("+007", "long", 7),
    ("-9223372036854775808", "long", -(2**63)),
    ("2147483647", "int", 2**31 - 1),
    ("1e3", "double", 1000.0),
    (".5", "double", 0.5),
    ("1.1", "float", 1.100000023841858),
    ("TRUE", "boolean", True),
    ("1.50", "decimal(10,2)", Decimal("1.50")),
    ("+1.5e1", "decimal(4,2)", Decimal("15.00")),
    ("9" * 38, "decimal(38,0)", Decimal("9" * 38)),
    ("0." + "9" * 38, "decimal(38,38)", Decimal("0." + "9" * 38)),
    ("2024-02-29", "date", dt.date(2024, 2, 29)),
    ("2024-02-29T00:00:00", "date", dt.date(2024, 2, 29)),
    ("13:05:00.25", "time", dt.time(13, 5, 0, 250_000)),
    ("2024-05-31T13:05:00.5", "timestamp", dt.datetime(2024, 5, 31, 13, 5, 0, 500_000)),
    ("2024-05-31 13:05:00+02:00", "timestamptz", dt.datetime(2024, 5, 31, 11, 5, tzinfo=UTC)),
    ("é", "binary", "é".encode()),
    ("x", "string", "x"),
    (1, "boolean", True),
    (True, "int", 1),
    (2.0, "long", 2),
    (2**53, "double", float(2**53)),
    (0.1, "decimal(3,1)", Decimal("0.1")),
    (19.99, "decimal(10,2)", Decimal("19.99")),
    (1e-7, "decimal(10,8)", Decimal("0.00000010")),
    (Decimal("7.00"), "int", 7),
    (Decimal("0.30"), "double", 0.3),
    (5, "decimal(3,2)", Decimal("5.00")),
    (0.5, "float", 0.5),
    (1.5, "string", "1.5"),
    (True, "string", "true"),
    (Decimal("1.50"), "string", "1.50"),
    (dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "string", "2024-01-02T03:04:05Z"),
    ({"a": [1, None]}, "string", '{"a":[1,null]}'),
    (b"\xc3\xa9", "string", "é"),
    (dt.date(2024, 1, 2), "timestamp", dt.datetime(2024, 1, 2)),
    (dt.datetime(1969, 12, 31), "date", dt.date(1969, 12, 31)),
    (dt.time(1, 2), "string", "01:02:00"),
]


@pytest.mark.parametrize(("value", "word", "expected"), EXACT)
def test_a_value_becomes_its_like(value: Any, word: str, expected: Any) -> None:
    assert cast_one(value, word) == expected


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("", "long"),
        (" 1", "long"),
        ("1.0", "long"),
        ("9223372036854775808", "long"),
        ("2147483648", "int"),
        ("1e999", "double"),
        ("1e39", "float"),
        ("NaN", "double"),
        ("yes", "boolean"),
        ("1", "boolean"),
        ("1.005", "decimal(10,2)"),
        ("100", "decimal(4,2)"),
        ("9" * 38 + ".5", "decimal(38,0)"),
        ("1" * 39, "decimal(38,0)"),
        ("1e999", "decimal(38,0)"),
        ("2023-02-29", "date"),
        ("2024-02-29T01:00:00", "date"),
        ("24:00:00", "time"),
        ("2024-05-31T13:05:00Z", "timestamp"),
        ("2024-05-31T13:05:00", "timestamptz"),
        ("2024-05-31", "timestamp"),
        (2, "boolean"),
        (2.5, "long"),
        (math.nan, "long"),
        (1e300, "long"),
        (2**31, "int"),
        (2**53 + 1, "double"),
        (0.1, "float"),
        (1e300, "float"),
        (math.inf, "decimal(10,2)"),
        (1.005, "decimal(10,2)"),
        (Decimal("1.50"), "int"),
        (Decimal("0.12345678901234567890"), "double"),
        (1000, "decimal(4,2)"),
        (b"\xff", "string"),
        (dt.datetime(2024, 1, 2, 3), "date"),
    ],
)
def test_a_value_that_would_change_fails(value: Any, word: str) -> None:
    error = cast_one(value, word)
    assert isinstance(error, BatchError)
    assert f"in column 'x' does not fit {word.replace(',', ', ')}; " in str(error)
    assert cast_one(value, word, on_error="nullify") is None


@pytest.mark.parametrize(
    ("value", "word", "cut"),
    [
        ("-1.99", "long", -1),
        ("2.5e0", "int", 2),
        (-1.99, "long", -1),
        (1.009, "decimal(10,2)", Decimal("1.00")),
        ("-1.009", "decimal(10,2)", Decimal("-1.00")),
        ("9" * 38 + ".9", "decimal(38,0)", Decimal("9" * 38)),
        (Decimal("-1.99"), "long", -1),
        (Decimal("0.12345678901234567890"), "double", 0.12345678901234568),
        (2**53 + 1, "double", float(2**53)),
        (0.1, "float", 0.10000000149011612),
        (dt.datetime(1969, 12, 31, 23), "date", dt.date(1969, 12, 31)),
        ("2024-02-29T01:00:00", "date", dt.date(2024, 2, 29)),
        (dt.datetime(2024, 1, 1), "date", dt.date(2024, 1, 1)),
    ],
)
def test_what_is_behind_is_cut_if_that_is_allowed(value: Any, word: str, cut: Any) -> None:
    assert cast_one(value, word, truncate=True) == cut


@pytest.mark.parametrize(
    ("value", "word"), [(1e300, "float"), (1e19, "long"), ("1e400", "double"), (300.5, "decimal(4,2)")]
)
def test_what_is_too_large_is_never_cut(value: Any, word: str) -> None:
    assert isinstance(cast_one(value, word, truncate=True), BatchError)


def test_nanoseconds_are_cut_to_microseconds_only_if_allowed() -> None:
    for kind in (pa.timestamp("ns"), pa.time64("ns")):
        word = "time" if kind == pa.time64("ns") else "timestamp"
        assert isinstance(cast_one(1001, word, kind), BatchError)
        assert cast_one(1000, word, kind).microsecond == 1
        assert cast_one(1999, word, kind, truncate=True).microsecond == 1


@pytest.mark.parametrize(
    ("value", "word", "message"),
    [
        (
            1,
            "timestamp",
            "'x' is of type long, which is never a timestamp; say what the number counts, in map: to_times",
        ),
        (1, "date", "'x' is of type long, which is never a date; say what the number counts"),
        ([1], "long", "which is never a long; it can become string"),
        (1.5, "boolean", "which is never a boolean; it can become int, long, decimal, string"),
        (True, "double", "'x' is of type boolean, which is never a double; it can become int, long, string"),
        (dt.datetime(2024, 1, 1), "timestamptz", "set timezone to that whose clock the timestamps without a zone show"),
        (dt.datetime(2024, 1, 1, tzinfo=UTC), "date", "set timezone to that whose clock"),
    ],
)
def test_what_may_mean_several_things_is_refused_for_the_whole_column(value: Any, word: str, message: str) -> None:
    assert message in str(cast_one(value, word))
    assert isinstance(cast_one(value, word, on_error="nullify"), ConfigError)


TYPES = {
    "long": pa.int64(),
    "int": pa.int32(),
    "double": pa.float64(),
    "decimal(9,3)": pa.decimal128(9, 3),
    "string": pa.string(),
}
WORDS = ["long", "int", "double", "decimal(9,3)", "decimal(38,10)", "decimal(38,38)"]
VALUES = {
    "long": st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20),
    "int": st.integers(-(2**31), 2**31 - 1) | st.integers(-20, 20),
    "double": st.floats() | st.integers(-50, 50).map(lambda n: n / 4) | st.integers(-(2**62), 2**62).map(float),
    "decimal(9,3)": st.decimals(-999_999, 999_999, places=3),
    "string": st.integers(-(10**20), 10**20).map(str)
    | st.decimals(-1000, 1000, places=4).map(str)
    | st.floats().map(repr)
    | st.decimals(allow_nan=False, allow_infinity=False).map(str)
    | st.from_regex(r"\A[+-]?[0-9]{0,45}\.?[0-9]{0,45}\Z")
    | st.sampled_from(["", "1e3", "+5", " 1", "1_0", "0x1", "-0", "٣", "1.", ".5", "--1", "1e-3"]),
}


def number_of(value: Any) -> Decimal | None:
    """The oracle: the number that a value is, exactly; a double as it is printed."""
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", value) is None:
            return None
        return Decimal(value)
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return number if number.is_finite() else None


def takes(value: Any, word: str) -> bool | None:
    """Whether a value fits exactly; None where the oracle does not say."""
    number = number_of(value)
    if number is None or (
        isinstance(value, str) and word in ("long", "int") and not re.fullmatch(r"[+-]?[0-9]+", value)
    ):
        return False if word != "double" or isinstance(value, str) else None
    if word in ("long", "int"):
        bits = 63 if word == "long" else 31
        whole = Decimal(value) if isinstance(value, float) else number
        return whole == int(whole) and -(2**bits) <= int(whole) < 2**bits
    if word == "double":
        if isinstance(value, int):
            return int(float(value)) == value
        return math.isfinite(float(number)) if isinstance(value, str) else None
    kind = type_named(word)
    unscaled = Fraction(number) * 10**kind.scale
    return unscaled.denominator == 1 and abs(unscaled) < 10**kind.precision


@given(st.data(), st.sampled_from(list(VALUES)), st.sampled_from(WORDS))
def test_numbers_fit_exactly_or_not_at_all(data: st.DataObject, source_word: str, word: str) -> None:
    values = data.draw(st.lists(st.none() | VALUES[source_word], max_size=6))
    column = batch(x=pa.array(values, TYPES[source_word])).slice(data.draw(st.integers(0, 2)))
    done = made(CastTransform, columns={"x": word}, on_error="nullify").apply(column)
    done.validate(full=True)
    for value, got in zip(column.column("x").to_pylist(), done.column("x").to_pylist(), strict=True):
        expected = None if value is None else takes(value, word)
        if value is None or expected is False:
            assert got is None
        elif expected:
            assert got is not None
            assert got == (
                float(value)
                if word == "double"
                else number_of(value)
                if word.startswith("dec")
                else int(Decimal(value))
            )


FORMATS = [
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%b %d, %Y %I:%M:%S %p",
    "%Y%m%d%H%M%S.%f",
    "%A %d/%B/%y",
    "%Y-%m-%dT%H:%M:%S%z",
]


@given(st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2068, 12, 31)), st.sampled_from(FORMATS))
def test_text_of_any_format_reads_as_python_reads_it(value: dt.datetime, written: str) -> None:
    text = value.replace(tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))).strftime(written)
    expected = dt.datetime.strptime(text, written)  # noqa: DTZ007 - that is what is compared
    if expected.tzinfo is None:
        assert cast_one(text, "timestamp", formats=FORMATS) == expected
        assert cast_one(text, "timestamptz", formats=[written], timezone="UTC") == expected.replace(tzinfo=UTC)
    else:
        assert cast_one(text, "timestamptz", formats=FORMATS) == expected


def test_formats_are_by_column_tried_in_turn_and_instead_of_iso() -> None:
    data = batch(
        a=pa.array(["1.2.2024", "2024/02/03", "2024-02-01", "31.2.2024", None]), b=pa.array(["2024-05-31T13:05:00"] * 5)
    )
    options = {"columns": {"a": "date", "b": "timestamp"}, "formats": {"a": ["%d.%m.%Y", "%Y/%m/%d"]}}
    done = made(CastTransform, on_error="nullify", **options).apply(data)
    assert done.column("a").to_pylist() == [dt.date(2024, 2, 1), dt.date(2024, 2, 3), None, None, None]
    assert done.column("b").null_count == 0


BERLIN = ZoneInfo("Europe/Berlin")


@given(st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2035, 1, 1)))
def test_a_time_zone_leads_from_clocks_to_instants_and_back(value: dt.datetime) -> None:
    value = value.replace(fold=0)
    instant = value.replace(tzinfo=BERLIN)
    exists = instant.astimezone(UTC).astimezone(BERLIN).replace(tzinfo=None) == value
    twice = value.replace(tzinfo=BERLIN, fold=1).utcoffset() != instant.utcoffset()
    for shown in (value, value.isoformat(sep="T", timespec="microseconds")):
        got = cast_one(shown, "timestamptz", timezone="Europe/Berlin")
        if exists and not twice:
            assert got == instant
            assert cast_one(got, "timestamp", timezone="Europe/Berlin") == value
            day = cast_one(got, "date", timezone="Europe/Berlin", truncate=True)
            assert day == value.date()
        else:
            assert isinstance(got, BatchError)


def test_hours_that_a_clock_left_out_or_showed_twice_do_not_fit() -> None:
    for hour in (dt.datetime(2024, 3, 31, 2, 30), dt.datetime(2024, 10, 27, 2, 30)):
        assert not fits(hour, "timestamptz", timezone="Europe/Berlin")
    assert cast_one("2024-07-01T12:00:00Z", "timestamp", timezone="Europe/Berlin") == dt.datetime(2024, 7, 1, 14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_in_any_layout_and_nested_fields_are_cast(layout: str) -> None:
    inner = pa.StructArray.from_arrays(
        [texts(["1", "2", None], layout)], names=["n"], mask=pa.array([False, True, False])
    )
    listed = pa.ListArray.from_arrays([0, 2, 2, 3], inner)
    data = batch(s=texts(["1", None, "3"], layout), o=inner, l=listed, z=pa.nulls(3), e=pa.array([{"x": None}] * 3))
    done = made(CastTransform, columns={"s": "int", "o.n": "long", "l.n": "long", "z.y": "int", "e.x": "date"}).apply(
        data
    )
    done.validate(full=True)
    assert done.select(["s", "o", "l"]).to_pylist() == [
        {"s": 1, "o": {"n": 1}, "l": [{"n": 1}, None]},
        {"s": None, "o": None, "l": []},
        {"s": 3, "o": {"n": None}, "l": [{"n": None}]},
    ]
    assert done.column("z").type == pa.null()
    assert done.schema.field("e").type == pa.struct([("x", pa.date32())])
    assert made(CastTransform, columns={"s": "int"}).apply(data.slice(0, 0)).num_rows == 0


def test_columns_that_are_not_named_keep_their_buffers_and_places() -> None:
    data = batch(a=pa.array([1, 2]), b=pa.array([1, 2]), c=pa.nulls(2))
    done = made(CastTransform, columns={"b": "string"}).apply(data)
    assert done.schema.names == ["a", "b", "c"]
    assert done.column("a").buffers()[1].address == data.column("a").buffers()[1].address
    assert made(CastTransform, columns={"x": "int"}, on_missing="ignore").apply(data).equals(data)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"aa": "int"}, r"cast\.columns names a column 'aa' that is not there; did you mean 'a'\?"),
        ({"o.y": "int"}, r"cast\.columns names a column 'o\.y' that is not there; did you mean 'o\.x'\?"),
        ({"s.y": "int"}, r"cast\.columns names a column 's\.y' that is not there"),
        ({"o": "string", "o.x": "int"}, r"cast\.columns names 'o' and 'o\.x', which is a part of it; name one of them"),
    ],
)
def test_columns_that_are_not_there_are_told(columns: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(CastTransform, columns=columns).apply(rows({"a": 1, "s": "x", "o": {"x": 1}}))


@pytest.mark.parametrize(
    ("options", "mistakes"),
    [
        (
            {"columns": {"a": "integer"}},
            {
                (
                    "columns",
                    "a",
                ): "columns.a: 'integer' is no type; types are boolean, int, long, float, double, date, time, "
                "timestamp, timestamptz, string, binary and decimal(digits, digits behind the point)"
            },
        ),
        (
            {"columns": {"a": "decimal(39,2)"}},
            {
                (
                    "columns",
                    "a",
                ): "columns.a: 'decimal(39,2)' has no room: a decimal has 1 to 38 digits in all, and at most "
                "as many of them behind the point"
            },
        ),
        (
            {"columns": {"a": "date"}, "formats": ["%Y"]},
            {"formats": "'%Y' must have %m or %b or %B once, to name one day"},
        ),
        (
            {"columns": {"a": "int"}, "formats": ["%F"]},
            {"formats": "no column is cast to date, timestamp or timestamptz; leave formats out"},
        ),
        (
            {"columns": {"a": "date"}, "formats": {"b": ["%F"]}},
            {"formats": "'b' is not cast to date, timestamp or timestamptz in columns, so it has no formats"},
        ),
        (
            {"columns": {"a": "date"}, "timezone": "Mars"},
            {"timezone": "there is no time zone 'Mars'; write one as Europe/Berlin, UTC or +02:00"},
        ),
        ({"columns": {"a": "decimal( 4 , 2 )"}, "timezone": "+02:00"}, {}),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], mistakes: dict[str, str]) -> None:
    assert CastTransform.mistakes(CastTransform.Config(**options)) == mistakes


@pytest.mark.parametrize("bad", ["%Y-%m-%d %q", "%", "%F %I", "%F %M", "%F %H %S", "%F %Y", "%Y-%m-%d %f", "%%F"])
def test_formats_that_say_no_day_or_half_a_time_are_refused(bad: str) -> None:
    config = CastTransform.Config(columns={"a": "date"}, formats=[bad])
    assert repr(bad) in CastTransform.mistakes(config)["formats"]


def test_long_values_are_cut_in_messages() -> None:
    error = cast_one("x" * 100, "int")
    assert f"cast: '{'x' * 60}...' in column 'x' does not fit int; " in str(error)


def test_rows_at_fault_become_dead_letters_however_many_they_are(tmp_path: Path) -> None:
    table = numbered(4000)
    for row in table:
        row["k"] = str(row["n"]) if row["v"] < 4 else f"no {row['n']}"
    world = World({"t": table})
    step = transform("c", "cast", columns={"k": "long", "o.x": "string"})
    outcome = run_now(world, line(source(batch_rows=2000), step, sink()), tmp_path)
    assert outcome.failed() == []
    letters = outcome.letters_of()
    assert sorted(stored.letter.key.offset for stored in letters) == [n * 10 for n in range(4000) if n % 10 >= 4]
    one = next(stored.letter for stored in letters if stored.letter.key.offset == 50)
    assert "cast: 'no 5' in column 'k' does not fit long" in one.message
    kept = world.kept("default/p", "out").rows
    assert [(row["k"], row["o"]["x"]) for row in kept] == [(n, str(n)) for n in range(4000) if n % 10 < 4]


def test_rows_with_values_at_fault_in_lists_are_searched_for(tmp_path: Path) -> None:
    world = World({"t": numbered(40)})
    split = transform("l", "map", columns={"l": "[named_struct('s', k), named_struct('s', cast(n AS text))]"})
    step = transform("c", "cast", columns={"l.s": "int"})
    world.tables["t"] = [{**row, "k": "x" if row["n"] in (3, 17) else "5"} for row in world.tables["t"]]
    outcome = run_now(world, line(source(), split, step, sink()), tmp_path)
    assert sorted(stored.letter.key.offset for stored in outcome.letters_of()) == [30, 170]
    assert [row["l"] for row in world.kept("default/p", "out").rows] == [
        [{"s": 5}, {"s": n}] for n in range(40) if n not in (3, 17)
    ]


def test_without_dead_letters_the_run_stops_at_the_first(tmp_path: Path) -> None:
    world = World({"t": numbered(8)})
    step = transform("c", "cast", columns={"k": "long"})
    outcome = run_now(world, line(source(), step, sink(), dlq=None), tmp_path)
    ((stage, message),) = outcome.failed()
    assert stage == "c"
    assert "4 of 4 rows are bad; the first is row 0 of the batch: cast: 'a' in column 'k' does not fit long" in message


def test_values_made_null_are_counted_in_the_log(tmp_path: Path) -> None:
    world = World({"t": numbered(30)})
    step = transform("c", "cast", columns={"k": "long", "v": "boolean"}, on_error="nullify")
    with structlog.testing.capture_logs() as logs:
        outcome = run_now(
            world,
            line(source(batch_rows=10), step, transform("a", "brittle", column="n", poison=[5]), sink()),
            tmp_path,
        )
    assert len(outcome.letters_of()) == 1
    told = [entry for entry in logs if entry["log_level"] == "warning" and entry.get("stage") == "c"]
    first, last = "values that do not fit are made null", "values that did not fit were made null in this run"
    assert sorted((entry["event"], entry["column"], entry["count"]) for entry in told) == [
        *((last, column, count) for column, count in (("k", 30), ("v", 24))),
        *((first, column, count) for column, count in (("k", 10), ("v", 8))),
    ]
    kept = world.kept("default/p", "out").rows
    assert [(row["k"], row["v"]) for row in kept] == [
        (None, {0: False, 1: True}.get(n % 10)) for n in range(30) if n != 5
    ]
