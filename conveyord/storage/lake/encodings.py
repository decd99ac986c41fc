"""How each column of a Parquet file is encoded, decided from its first rows.

Parquet's default tries a dictionary on every column and falls back when it grows too large: on a column
of ids that is work for nothing, and the values up to then are stored badly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

SAMPLE_ROWS = 8192  # about 0.1 ms per column; a column that repeats shows it by then
DICTIONARY_SHARE_STRINGS = 0.5  # distinct values per value up to which a dictionary of texts pays
DICTIONARY_SHARE_NUMBERS = 0.05  # numbers are shorter than texts and pack well without one


@dataclass(frozen=True, slots=True)
class Encodings:
    """Arguments for `pyarrow.parquet.ParquetWriter`, by column path."""

    dictionary: list[str]
    plain: dict[str, str]
    """What columns without a dictionary use instead, where that is not plain."""


def choose_encodings(table: pa.Table) -> Encodings:
    """Encodings for a file that begins with `table`, whose names are those of the file."""
    dictionary: list[str] = []
    plain: dict[str, str] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        sample = column.slice(0, SAMPLE_ROWS).combine_chunks()
        for path, values in _leaves(name, sample):
            if _repeats(values):
                dictionary.append(path)
            elif (encoding := _encoding(values.type)) is not None:
                plain[path] = encoding
    return Encodings(dictionary, plain)


def _leaves(path: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """Parquet's column paths, with the sample's values."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        yield path, values.storage
    elif pa.types.is_struct(kind):
        for position, child in enumerate(kind):
            yield from _leaves(f"{path}.{child.name}", pc.struct_field(values, [position]))
    elif pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", values.flatten())
    elif pa.types.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", values.keys)
        yield from _leaves(f"{path}.key_value.value", values.items)
    else:
        yield path, values


def _repeats(values: pa.Array) -> bool:
    kind = values.type
    if pa.types.is_boolean(kind):
        return False
    present = len(values) - values.null_count
    if not present:
        return True  # nothing known: Parquet's default, which corrects itself
    texts = pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)
    share = DICTIONARY_SHARE_STRINGS if texts else DICTIONARY_SHARE_NUMBERS
    return bool(pc.count_distinct(values).as_py() <= max(1, share * present))


def _encoding(kind: pa.DataType) -> str | None:
    if pa.types.is_floating(kind):
        return "BYTE_STREAM_SPLIT"
    if pa.types.is_integer(kind) or pa.types.is_temporal(kind):
        return "DELTA_BINARY_PACKED"
    return None
