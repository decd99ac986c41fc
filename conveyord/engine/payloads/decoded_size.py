"""How large Arrow data becomes when its encodings are undone, found out without undoing them.

A dictionary holds a text once that every row may stand for, a view may be one of thousands onto the same bytes: a
message of some hundred bytes becomes gigabytes as plain columns.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt


def decoded_bytes(array: pa.Array) -> int:
    """About how many bytes the plain form of `array` takes; never much too few. At least one for each value.

    array: valid (`validate(full=True)`). May say too many where encodings are nested in one another.
    Raises ArrowInvalid for views that are not.
    """
    kind, count = array.type, len(array)
    if isinstance(array, pa.ExtensionArray):
        return decoded_bytes(array.storage)
    if pt.is_dictionary(kind):
        return _by_dictionary(array)
    if pt.is_run_end_encoded(kind):
        return count * largest_bytes(array.values)
    if pt.is_union(kind):
        return count + sum(count * largest_bytes(array.field(index)) for index in range(kind.num_fields))
    if pt.is_struct(kind):
        return count + sum(decoded_bytes(array.field(index)) for index in range(kind.num_fields))
    if pt.is_map(kind):
        return 4 * count + _of_children(array.keys, count) + _of_children(array.items, count)
    if pt.is_fixed_size_list(kind):
        return count + max(count * int(kind.list_size), decoded_bytes(array.flatten()))
    if pt.is_list(kind) or pt.is_large_list(kind):
        return 8 * count + _of_children(array.flatten(), count)
    if pt.is_list_view(kind) or pt.is_large_list_view(kind):
        elements = int(pc.sum(pc.list_value_length(array)).as_py() or 0)
        apart = decoded_bytes(array.values)
        return 8 * count + (apart if elements <= len(array.values) else elements * largest_bytes(array.values))
    lengths = _lengths(array)
    if lengths is not None:
        return 4 * count + int(lengths.sum())
    return count * _width(kind)


def largest_bytes(array: pa.Array) -> int:
    """At most so many bytes one value of `array` takes in its plain form."""
    if isinstance(array, pa.ExtensionArray):
        return largest_bytes(array.storage)
    lengths = _lengths(array)
    if lengths is not None:
        return 4 + int(lengths.max(initial=0))
    return decoded_bytes(array) if pt.is_nested(array.type) or pt.is_dictionary(array.type) else _width(array.type)


def _by_dictionary(array: pa.DictionaryArray) -> int:
    words, indices = array.dictionary, array.indices
    largest = len(array) * largest_bytes(words)
    lengths = _lengths(words)
    if lengths is None or largest <= _EXACT_FROM_BYTES or not len(words):
        return largest
    used = np.asarray(indices.fill_null(0).cast(pa.int64()))
    return 4 * len(array) + int(lengths[used].sum())


def _of_children(children: pa.Array, count: int) -> int:
    return decoded_bytes(children) if count else 0


def _lengths(array: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """The bytes of each text or binary value; None for other types."""
    kind = array.type
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        if not len(array):
            return np.empty(0, np.int64)
        _check_views(array)
        views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)
        lengths = views[array.offset : array.offset + len(array), 0].astype(np.int64)
        return lengths if array.null_count == 0 else np.where(np.asarray(array.is_valid()), lengths, 0)
    if pt.is_string(kind) or pt.is_binary(kind) or pt.is_large_string(kind) or pt.is_large_binary(kind):
        return np.asarray(pc.binary_length(array).fill_null(0).cast(pa.int64()))
    return None


def _check_views(array: pa.Array) -> None:
    """Raise ArrowInvalid if the view of a null leads elsewhere: `validate` passes over those, and casts do not."""
    if array.null_count:
        buffers = [None, *array.buffers()[1:]]
        pa.Array.from_buffers(pa.binary_view(), len(array), buffers, offset=array.offset).validate(full=True)


def _width(kind: pa.DataType) -> int:
    """Bytes of one value. A null takes one here, so that a column of nulls cannot be endless."""
    try:
        return max(1, (int(kind.bit_width) + 7) // 8)
    except ValueError:
        return 1


_EXACT_FROM_BYTES = 16 * 1024 * 1024  # less is no danger, and not worth looking at each value
