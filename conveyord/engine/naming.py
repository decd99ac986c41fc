"""The words for column types, used for sibling columns and in messages.

A value that does not fit its column goes to a sibling column named after the value's type:
`rating__double` beside `rating`. The word is Iceberg's where Iceberg has one.
"""

from __future__ import annotations

import pyarrow as pa

SIBLING_SEPARATOR = "__"


def type_word(arrow_type: pa.DataType) -> str:
    """The word that names `arrow_type` in a sibling column. Parameters are left out on purpose."""
    checks = (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "long"),
        (pa.types.is_floating, "double"),
        (pa.types.is_decimal, "decimal"),
        (pa.types.is_timestamp, "timestamp"),
        (pa.types.is_date, "date"),
        (pa.types.is_time, "time"),
        (pa.types.is_struct, "struct"),
        (pa.types.is_list, "list"),
        (pa.types.is_large_list, "list"),
        (pa.types.is_map, "map"),
        (pa.types.is_binary, "binary"),
        (pa.types.is_large_binary, "binary"),
    )
    return next((word for check, word in checks if check(arrow_type)), "string")


def sibling_name(column: str, arrow_type: pa.DataType) -> str:
    """The name of the column beside `column` that takes values of `arrow_type`."""
    return f"{column}{SIBLING_SEPARATOR}{type_word(arrow_type)}"
