"""What SQL may not do to the process: panics, depth, length, memory."""

from __future__ import annotations

import pyarrow as pa
import pytest

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine import sql
from conveyord.engine.conditions import RowCondition, condition_problem
from conveyord.engine.expressions import RowExpressions, expression_problem
from conveyord.engine.sql import OPERATORS_MAX, TEXT_CHARS_MAX, BatchQuery, query_problem

ROWS = pa.RecordBatch.from_pydict({"id": [1, 2, 3]})
PANIC = "range(id, 9223372036854775807)"
SUM = "+".join(["id"] * (OPERATORS_MAX + 2))


def test_a_panic_on_a_value_fails_the_batch_and_the_session_lives_on() -> None:
    query = BatchQuery(
        "SELECT CASE WHEN id > 3 THEN range(id, 9223372036854775807) END AS x FROM input_data", setting="q"
    )
    with pytest.raises(
        BatchError, match=r"q failed on a value: DataFusion cannot compute it \(capacity overflow\); look"
    ):
        query.run(pa.RecordBatch.from_pydict({"id": [1, 4]}))
    assert query.run(ROWS).num_rows == 3


def test_a_panic_in_an_expression_names_it() -> None:
    with pytest.raises(BatchError, match=r"columns.b failed on a value: DataFusion cannot"):
        RowExpressions({"a": "id", "b": PANIC}, setting="columns").values(ROWS)


def test_a_panic_while_planning_is_the_fault_of_the_query() -> None:
    query = BatchQuery("SELECT range(0, 9223372036854775806 + 1) AS x FROM input_data", setting="q")
    with pytest.raises(ConfigError, match="q cannot work on these rows: DataFusion cannot compute it"):
        query.run(ROWS)


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT {SUM} AS x FROM input_data",
        "SELECT id FROM input_data" + " UNION ALL SELECT id FROM input_data" * OPERATORS_MAX,
        "SELECT 1 AS x FROM " + ", ".join(f"input_data t{i}" for i in range(OPERATORS_MAX + 2)),
        "SELECT id FROM input_data WHERE " + " AND ".join(["id"] * (OPERATORS_MAX + 2)),
        "SELECT id" + "::int" * (OPERATORS_MAX + 1) + " FROM input_data",
        "SELECT id" + "[1]" * (OPERATORS_MAX + 1) + " FROM input_data",
    ],
    ids=["sum", "union", "tables", "and", "casts", "elements"],
)
def test_a_query_that_would_be_too_deep_is_refused_with_the_limit(query: str) -> None:
    assert f"operators, and {OPERATORS_MAX} is the most; spread it" in (query_problem(query) or "")


def test_expressions_and_conditions_have_the_same_limits() -> None:
    assert f"x has {OPERATORS_MAX + 1} operators" in (expression_problem(SUM, setting="x") or "")
    assert f"when has {OPERATORS_MAX + 1} operators" in (condition_problem(SUM) or "")
    long = f"id = '{'a' * TEXT_CHARS_MAX}'"
    assert f"characters, and {TEXT_CHARS_MAX:,} is the most" in (condition_problem(long) or "")
    with pytest.raises(ConfigError, match="operators"):
        RowCondition(SUM, setting="when")


def test_long_lists_many_columns_and_words_in_quotes_are_not_deep() -> None:
    assert query_problem(f"SELECT * FROM input_data WHERE id IN ({','.join(map(str, range(2_000)))})") is None
    columns = {f"c{number}": "id + 1" for number in range(OPERATORS_MAX + 1)}
    assert RowExpressions(columns, setting="columns").values(ROWS).num_columns == OPERATORS_MAX + 1
    assert expression_problem(f"'{'+' * 1_000}'", setting="x") is None


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("repeat('x', 2000000000)", "repeat with 2,000,000,000, and 1,000,000 is the most"),
        ("length(REPEAT ( 'a, (b', 2e9::bigint ))", "REPEAT with 2,000,000,000"),
        ("lpad(concat('a', lower('B')), 1000001, 'y')", "lpad with 1,000,001"),
        ("rpad('a', 3000000)", "rpad with"),
        ("array_repeat(id, 3000000)", "array_repeat with"),
        ("list_resize([id], 3000000, 0)", "list_resize with"),
        ("range(2000000)", "range with 2,000,000"),
        ("range(5, 2000006)", "range with 2,000,001"),
        ("generate_series(3000000, 0, -1)", "generate_series with 3,000,000"),
    ],
)
def test_a_slip_that_makes_one_value_as_large_as_memory_is_refused(expression: str, said: str) -> None:
    assert said in (expression_problem(expression, setting="x") or "")
    assert said in (query_problem(f"SELECT {expression} AS x FROM input_data") or "")
    assert said in (condition_problem(f"length({expression}) > 0") or "")


@pytest.mark.parametrize(
    "expression",
    [
        "repeat('x', 1000000)",
        "lpad('a, 9999999', 20, '9999999')",
        "repeat('x', id)",
        "(SELECT max(value) FROM generate_series(1, 9000000))",
        "range(0, 9000000, 1000)",
        "range(id, 9223372036854775807)",
        "id IN (1, 9999999)",
        "coalesce(9999999, 9999999)",
        "substr('x', 1, 9999999)",
        "repeat()",
        "repeat('x', 9999999",
        ")))((repeat",
    ],
)
def test_other_numbers_are_nobody_s_business(expression: str) -> None:
    assert "is the most" not in (expression_problem(expression, setting="x") or "")


def test_looking_for_slips_takes_no_longer_than_the_text() -> None:
    for text in ("repeat(" * 5_000, "a" * 33_000, " " * 33_000 + "(", "(" * 33_000, "1," * 16_000):
        expression_problem(text, setting="x")


def test_a_join_that_holds_too_much_fails_instead_of_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MEMORY_BYTES_MAX", 16 << 20)  # less, so that it is soon reached
    data = pa.RecordBatch.from_pydict({"id": range(1_000)})
    query = BatchQuery("SELECT a.id FROM input_data a, input_data b, input_data c ORDER BY b.id * c.id", setting="q")
    with pytest.raises(
        BatchError,
        match="q needs more than 16.* of memory for one batch: sort, group or join fewer rows",
    ):
        query.run(data)
