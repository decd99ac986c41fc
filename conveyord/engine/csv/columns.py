"""Cells as text into typed columns. The rule: a value takes a type only if its text follows from it.

So "007", "+5", " 5 ", "1e5" and integers beyond 64 bits are strings, not numbers. What is let go is
formatting that every reader of numbers knows: the zeros of "1.50", and the way a zone is written.
A double must give its decimal value back: fifteen significant digits, or a shortest form as programs
print it (0.30000000000000004). Exponents count only as programs print them (1.5e-05): "1E5" may be
a part number. A declared type is the user's word that these are numbers, and reads them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.csv.plain import is_plain, lengths
from conveyord.engine.json.timestamps import parse_column, parse_timestamp

TIMESTAMP, INSTANT = pa.timestamp("us"), pa.timestamp("us", "UTC")
# Tried in this order; the first that takes every value is the column's type.
INFERRED = (pa.bool_(), pa.int64(), pa.float64(), pa.date32(), TIMESTAMP, INSTANT)
DECLARED = {
    "string": pa.string(),
    "long": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": TIMESTAMP,
    "date": pa.date32(),
}

FIRST_LOOK_ROWS = 256  # most types are ruled out by the first few values
EXACT_DIGITS = 15  # every decimal of so many significant digits survives a double

_DATE = r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\z"
_STRICT = {
    pa.bool_(): r"\A(?:true|false)\z",
    pa.int64(): r"\A(?:0|-?[1-9][0-9]{0,18})\z",
    pa.float64(): r"\A-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|[0-9](?:\.[0-9]+)?[eE][+-][0-9]{1,3})\z",
    pa.date32(): _DATE,
}
_LENIENT = {
    pa.bool_(): r"\A(?i:true|false)\z",
    pa.int64(): r"\A[+-]?[0-9]+\z",
    pa.float64(): r"\A[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\z",
    pa.date32(): _DATE,
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """values: null where the cell is empty or does not fit. misfits: which do not fit; None if all do."""

    values: pa.Array
    misfits: pa.BooleanArray | None


def infer_type(texts: pa.StringArray) -> pa.DataType:
    """The type of a column of cells, null for empty ones: null if all are, string if nothing else fits."""
    present = texts.drop_null()
    if len(present) == 0:
        return pa.null()
    for kind in INFERRED:
        if not _all_fit(present.slice(0, FIRST_LOOK_ROWS), kind):
            continue
        if len(present) <= FIRST_LOOK_ROWS or _all_fit(present, kind):
            return kind
    return pa.string()


def resolve_declared(kind: pa.DataType, texts: pa.StringArray) -> pa.DataType:
    """A declared timestamp is an instant if every value has a zone. Other types stand as declared."""
    present = texts.drop_null()
    instants = kind == TIMESTAMP and len(present) > 0 and parse_column(present, INSTANT) is not None
    return INSTANT if instants else kind


def parse(texts: pa.StringArray, kind: pa.DataType, *, declared: bool = False) -> Parsed:
    """`texts` as `kind`, value by value. `declared` widens what counts as a number."""
    if kind == pa.string():
        return Parsed(texts, None)
    if texts.null_count == len(texts):
        return Parsed(pa.nulls(len(texts), kind), None)
    if pt.is_timestamp(kind) and kind in {TIMESTAMP, INSTANT}:
        values = _timestamps(texts, kind)
    elif kind in _STRICT:
        values = _scalars(texts, kind, declared=declared)
    else:  # a type that cells never have: a field that another format brought into the schema
        values = pa.nulls(len(texts), kind)
    if values.null_count == texts.null_count:
        return Parsed(values, None)
    return Parsed(values, pc.and_(texts.is_valid(), values.is_null()))


def _all_fit(texts: pa.StringArray, kind: pa.DataType) -> bool:
    if pt.is_timestamp(kind):
        return parse_column(texts, kind) is not None
    if _in_bulk(texts, kind) is not None:
        return True
    if kind != pa.float64() or pc.all(pc.match_substring_regex(texts, pattern=_STRICT[kind])).as_py() is False:
        return False
    return bool(parse(texts, kind).misfits is None)


def _scalars(texts: pa.StringArray, kind: pa.DataType, *, declared: bool) -> pa.Array:
    """Null where the text does not fit."""
    if (whole := _in_bulk(texts, kind)) is not None:
        return whole
    pattern = (_LENIENT if declared else _STRICT)[kind]
    shaped = pc.if_else(pc.match_substring_regex(texts, pattern=pattern), texts, pa.scalar(None, pa.string()))
    if declared:
        plain = pc.replace_substring_regex(pc.utf8_lower(shaped), pattern=r"\A\+", replacement="")
        if kind == pa.int64():
            plain = pc.replace_substring_regex(plain, pattern=r"\A(-?)0+([0-9])", replacement=r"\1\2")
        values = _cast(plain, kind)
    else:
        values = _cast(shaped, kind)
    return _exact_doubles(shaped, values, declared=declared) if kind == pa.float64() else values


def _in_bulk(texts: pa.StringArray, kind: pa.DataType) -> pa.Array | None:
    """The values if every one is written as programs print it, found without a pattern; else None.

    None decides nothing about doubles. Any other type then has a value that does not fit it.
    """
    try:
        values = texts.cast(kind)
    except pa.ArrowInvalid:
        return None
    present = texts.drop_null()
    if kind == pa.int64():
        return values if is_plain(present, whole=True) else None
    if kind == pa.float64():
        return values if is_plain(present, whole=False) and _all_exact(present, values.drop_null()) else None
    return None if pc.all(pc.equal(values.cast(pa.string()), texts)).as_py() is False else values


def _all_exact(texts: pa.StringArray, values: pa.DoubleArray) -> bool:
    """Whether plain decimals survive as doubles."""
    long = lengths(texts) > EXACT_DIGITS
    if not long.any():
        return True
    mask = pa.array(long)
    return bool(_exact_doubles(texts.filter(mask), values.filter(mask), declared=False).null_count == 0)


def _cast(texts: pa.StringArray, kind: pa.DataType) -> pa.Array:
    """Cast, with null for what has the right shape but no value (February 30th), found by halving."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, kind)
        half = len(texts) // 2
        return pa.concat_arrays([_cast(texts.slice(0, half), kind), _cast(texts.slice(half), kind)])


def _exact_doubles(texts: pa.StringArray, values: pa.DoubleArray, *, declared: bool) -> pa.DoubleArray:
    """Null for what overflowed and, unless declared, for decimals that a double would change."""
    nothing = pa.scalar(None, pa.float64())
    values = pc.if_else(pc.is_finite(values), values, nothing)
    short = (pc.max(pc.binary_length(texts)).as_py() or 0) <= EXACT_DIGITS
    if declared or (short and not pc.any(pc.match_substring(texts, "e", ignore_case=True)).as_py()):
        return values
    digits = pc.replace_substring_regex(texts, pattern=r"[eE].*\z|[.-]", replacement="")
    significant = pc.utf8_ltrim(digits, characters="0")
    exact = pc.less_equal(pc.binary_length(significant), EXACT_DIGITS)
    printed = pc.equal(_normal_exponent(texts), _normal_exponent(values.cast(pa.string())))
    vanished = pc.and_(pc.equal(values, 0.0), pc.greater(pc.binary_length(significant), 0))
    keep = pc.and_not(pc.or_(exact, printed), vanished)
    return pc.if_else(keep, values, nothing)


def _normal_exponent(texts: pa.StringArray) -> pa.StringArray:
    texts = pc.replace_substring_regex(texts, pattern=r"[eE]\+?(-?)0*", replacement=r"e\1")
    return pc.replace_substring_regex(texts, pattern=r"\.0\z", replacement="")


def _timestamps(texts: pa.StringArray, kind: pa.TimestampType) -> pa.TimestampArray:
    """Null where the text is no timestamp of this kind. In bulk if all are, otherwise one at a time."""
    whole = parse_column(texts, kind)
    if whole is not None:
        return whole
    zoned = kind.tz is not None
    micros: list[int | None] = []
    for text in texts.to_pylist():
        found = None if text is None else parse_timestamp(text)
        micros.append(found[0] if found is not None and found[1] is zoned else None)
    return pa.array(micros, pa.int64()).cast(kind)
