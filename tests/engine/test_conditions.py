"""What is no condition on a row is refused when a definition is checked, and what may be one is not."""

from __future__ import annotations

import pyarrow as pa
import pytest

from conveyord.engine.conditions import RowCondition, condition_problem


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("1", "this one gives int64"),
        ("'a'", "this one gives string"),
        ("a + 1", "this one gives int64"),
        ("upper(a)", "this one gives string"),
        ("CASE WHEN a THEN 1 ELSE b END", "this one gives int64"),
        ("now()", "this one gives timestamp"),
        ("foo(a)", "there is no function 'foo'"),
        ("a > 1 AND foo(b)", "there is no function 'foo'"),
        ("uper(a) = 'X'", "there is no function 'uper'; did you mean 'upper'?"),
        ("coalesce(a, foo(b))", "there is no function 'foo'"),
        ("sum(a) > 1", "without aggregates"),
        ("a >", "is refused"),
    ],
)
def test_what_is_no_condition_for_any_columns_is_told_without_them(when: str, reason: str) -> None:
    problem = condition_problem(when)
    assert problem is not None
    assert reason in problem


MAY_BE = [
    "a",
    "NOT a",
    "coalesce(a, b)",
    "CASE WHEN x = 1 THEN a END",
    "nullif(a, b)",
    "o.flag",
    "o.n > 1",
    "o['n'] = 1",
    '"we ird" = 1',
    "l[1] = 2",
    "NULL",
    "true",
    "arrow_cast(x, 'Boolean')",
    "x IN (1, 2)",
    "CAST(x AS DECIMAL(10, 2)) > 1",
    "x::varchar(3) = 'x'",
    "extract(year from t) = 2020",
    "t BETWEEN now() - INTERVAL '1' DAY AND now()",
    "Upper(s) LIKE 'X%'",
    "greatest(a, b)",
]
ROW = pa.RecordBatch.from_pylist(
    [{"a": True, "b": False, "x": 1, "o": {"flag": True, "n": 2}, "we ird": 1, "l": [2], "s": "x"}]
).append_column("t", pa.array([0], pa.timestamp("us", "UTC")))


@pytest.mark.parametrize("when", MAY_BE)
def test_what_some_columns_make_a_condition_is_let_through(when: str) -> None:
    assert condition_problem(when) is None
    if when != "NULL":
        RowCondition(when, setting="when").rows(ROW)


def test_no_records_and_no_columns_are_asked_nothing() -> None:
    empty = pa.RecordBatch.from_arrays([], schema=pa.schema([]))
    assert RowCondition("nowhere > 1", setting="when").rows(empty).to_pylist() == []
