"""What a source remembers of its schema: the newest of what several sinks hold, under the same options."""

from __future__ import annotations

import pyarrow as pa
import pytest

from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.schema_memory import remembered_schema, schema_to_remember
from conveyord.operators.source_file_jsonl import FileSourceConfig

CONFIG = OperatorConfig()
STRUCT = pa.struct([("a", pa.int64())])
GROWN = pa.struct([("a", pa.int64()), ("b", pa.string())])


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ([("n", pa.int64())], [("n", pa.int64()), ("m", pa.int64())]),
        ([("s", STRUCT)], [("s", GROWN)]),
        ([("l", pa.list_(STRUCT))], [("l", pa.list_(GROWN))]),
        ([("n", pa.null())], [("n", pa.int64())]),
        ([("l", pa.list_(pa.null()))], [("l", pa.list_(pa.int64()))]),
    ],
    ids=["column", "child", "child of elements", "type", "type of elements"],
)
def test_the_newest_of_several_schemas_is_gone_on_with(
    older: list[tuple[str, pa.DataType]], newer: list[tuple[str, pa.DataType]]
) -> None:
    states = [schema_to_remember(CONFIG, pa.schema(fields)) for fields in (older, newer)]
    assert remembered_schema(CONFIG, states) == pa.schema(newer)
    assert remembered_schema(CONFIG, [*reversed(states), None]) == pa.schema(newer)


def test_a_schema_inferred_under_other_options_is_not_taken_up() -> None:
    state = schema_to_remember(FileSourceConfig(path="a"), pa.schema([("n", pa.int64())]))
    assert remembered_schema(FileSourceConfig(path="b"), [state]) is not None
    assert remembered_schema(FileSourceConfig(path="a", batch_rows=7), [state]) is None
