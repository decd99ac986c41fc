"""The words by which definitions name column types: Iceberg's, as `cast` takes them."""

from __future__ import annotations

import re

import pyarrow as pa

from conveyord.core.errors import ConfigError
from conveyord.engine.schema.types import DECIMAL_DIGITS_MAX

TYPES: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "string": pa.string(),
    "binary": pa.binary(),
}
_DECIMAL = re.compile(r"decimal\(\s*(?P<precision>[0-9]{1,3})\s*,\s*(?P<scale>[0-9]{1,3})\s*\)")


def type_named(word: str) -> pa.DataType:
    """The type that `word` names, such as `long` or `decimal(10, 2)`. Raises ConfigError if it names none."""
    if word in TYPES:
        return TYPES[word]
    decimal = _DECIMAL.fullmatch(word)
    if decimal is None:
        raise ConfigError(
            f"{word!r} is no type; types are {', '.join(TYPES)} and decimal(digits, digits behind the point)"
        )
    precision, scale = int(decimal["precision"]), int(decimal["scale"])
    if not 1 <= precision <= DECIMAL_DIGITS_MAX or scale > precision:
        raise ConfigError(
            f"{word!r} has no room: a decimal has 1 to {DECIMAL_DIGITS_MAX} digits in all, and at most as many of them "
            "behind the point"
        )
    return pa.decimal128(precision, scale)


def word_of(kind: pa.DataType) -> str:
    """The word for `kind`, for messages: Iceberg's where it has one, else Arrow's."""
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision}, {kind.scale})"
    return next((word for word, named in TYPES.items() if named.equals(kind)), str(kind))
