"""The words for column types, used for sibling columns and in messages.

A value that does not fit its column goes to a sibling column named after the value's type:
`rating__double` beside `rating`. The word is Iceberg's where Iceberg has one.
"""

from __future__ import annotations

import re

import pyarrow as pa

SIBLING_SEPARATOR = "__"

_TEXT_SIBLING = re.compile(rf"(.+?)(?:{SIBLING_SEPARATOR}json(?:_\d+)?)+", re.DOTALL)
"""The names, of decoders and of tables, for the JSON text of what no typed column can hold."""


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


def overflowing_column(name: str, arrow_type: pa.DataType) -> str | None:
    """The column whose misfits stand in a column `name` of `arrow_type`, if it is one for such; None otherwise.

    A record may have a field that happens to be called so: nothing tells the two apart.
    """
    column, separator, word = name.rpartition(SIBLING_SEPARATOR)
    if column and separator and word == type_word(arrow_type):
        return column
    found = _TEXT_SIBLING.fullmatch(name) if type_word(arrow_type) == "string" else None
    return None if found is None else found[1]
