"""Rows checked against a JSON Schema, one at a time, in Python.

Whatever the rows hold, the work on each is bounded: regular expressions are RE2's, references stay within the
schema, and nothing is fetched. A null counts as a field that is not there, since a column cannot tell them apart.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.errors import ConfigError
from conveyord.engine.column_paths import column_beside
from conveyord.engine.naming import SIBLING_SEPARATOR
from conveyord.engine.provenance import COLUMNS as PROVENANCE
from conveyord.engine.validation.column_rules import pattern_problem

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

SCHEMA_BYTES_MAX = 1024 * 1024  # as JSON; more is generated, and should be a stage of its own
SCHEMA_DEPTH_MAX = 60  # as deep as a record may nest
ERRORS_SHOWN_MAX = 5  # of one row
ROWS_AT_A_TIME = 4_096  # as Python objects, which take some ten times the memory of columns
VALUE_SHOWN_CHARS_MAX = 60  # of a value in the schema, in a message

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_LITERALS = ("const", "enum", "default", "examples")
_LISTED_IN_MESSAGE = ("required", "additionalProperties", "unevaluatedProperties", "dependentRequired")


class Document:
    """A JSON Schema (2020-12, or the older draft that its `$schema` names) for rows as objects."""

    def __init__(self, schema: Mapping[str, Any], *, setting: str) -> None:
        """setting: what the schema is called in messages. Raises ConfigError if it cannot be used."""
        problem = document_problem(schema)
        if problem is not None:
            raise ConfigError(f"{setting} {problem}")
        self._validator = _validator(schema)

    def errors(self, data: pa.RecordBatch) -> list[str | None]:
        """For each row what is wrong with it, None if nothing is. Blocking.

        Says where, and which rule is broken, but not the value.
        """
        names = [name for name in data.schema.names if name not in PROVENANCE]
        data = data.select(names)
        found: list[str | None] = []
        for first in range(0, data.num_rows, ROWS_AT_A_TIME):
            part = data.slice(first, ROWS_AT_A_TIME)
            found += [self._error(row) for row in (part.to_pylist() if names else [{}] * part.num_rows)]
        return found

    def _error(self, row: Mapping[str, Any]) -> str | None:
        try:
            wrong = list(islice(self._validator.iter_errors(instance_of(row)), ERRORS_SHOWN_MAX))
        except RecursionError:
            return "the row nests too deep for the schema, or the schema refers to itself without end"
        return "; ".join(sorted(_sentence(error) for error in wrong)) or None


def document_problem(schema: Mapping[str, Any]) -> str | None:
    """Why `schema` cannot be used, as words that follow its name; None if it can."""
    from jsonschema import SchemaError, validators

    if len(json.dumps(schema)) > SCHEMA_BYTES_MAX:
        return f"has more than {SCHEMA_BYTES_MAX} bytes"
    dialect = schema.get("$schema")
    known = isinstance(dialect, str) and validators.validator_for(schema, default=None) is not None
    if dialect is not None and not known:
        return f"is of an unknown dialect {dialect!r}; 2020-12 is https://json-schema.org/draft/2020-12/schema"
    problem = next(_problems(schema, depth=0), None)
    if problem is not None:
        return problem
    try:
        _plain_class(schema).check_schema(schema)
    except SchemaError as error:
        return f"is no JSON Schema: {error.json_path}: {error.message[: 2 * VALUE_SHOWN_CHARS_MAX]}"
    return _dangling(schema)


def _plain_class(schema: Mapping[str, Any]) -> Any:
    from jsonschema import Draft202012Validator, validators

    return validators.validator_for(schema, default=Draft202012Validator)


def _validator(schema: Mapping[str, Any]) -> Validator:
    from jsonschema import validators
    from referencing import Registry

    own = {"pattern": _pattern, "uniqueItems": _unique_items, "multipleOf": _multiple_of, "divisibleBy": _multiple_of}
    plain = _plain_class(schema)
    bounded = validators.extend(plain, {name: check for name, check in own.items() if name in plain.VALIDATORS})
    made: Validator = bounded(schema, registry=Registry())  # fetches nothing, unlike the default
    return made


def _problems(schema: Any, *, depth: int) -> Iterator[str]:
    """What we refuse in a schema, whatever the standard says."""
    if depth > SCHEMA_DEPTH_MAX:
        yield f"nests deeper than {SCHEMA_DEPTH_MAX} levels"
    elif isinstance(schema, list):
        for item in schema:
            yield from _problems(item, depth=depth + 1)
    elif isinstance(schema, dict):
        yield from _own_problems(schema, depth)
        for key, value in schema.items():
            if key not in _LITERALS:
                yield from _problems(value, depth=depth + 1)


def _own_problems(schema: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key in _REFERENCES:
        target = schema.get(key)
        if isinstance(target, str) and not target.startswith("#"):
            yield f"refers to {target!r}; only references within it are followed (#/$defs/...), nothing is fetched"
    if depth and isinstance(schema.get("$id"), str):
        yield f"has an $id within it ({schema['$id']!r}); only the whole may have one"
    if isinstance(schema.get("patternProperties"), dict):
        yield "has patternProperties, which are not supported; name the properties, or use propertyNames"
    pattern = schema.get("pattern")
    problem = pattern_problem(pattern) if isinstance(pattern, str) else None
    if problem is not None:
        yield f"has a pattern that RE2 does not take: {problem}"


def _dangling(schema: Mapping[str, Any]) -> str | None:
    """A reference that leads nowhere."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, specification_with

    specification = specification_with(schema["$schema"]) if "$schema" in schema else DRAFT202012
    resource = specification.create_resource(schema)
    resolver = Registry().resolver_with_root(resource)
    for target in _targets(schema):
        try:
            resolver.lookup(target)
        except Unresolvable:
            return f"refers to {target!r}, which is not in it"
    return None


def _targets(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _targets(item)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key not in _LITERALS:
                yield from _targets(value)


# ---------------------------------------------------------------------------- rows


def instance_of(value: Any) -> Any:
    """A row of a batch as the JSON value that it stands for, without nulls in objects.

    A value beside its column, because it did not fit there, is put back in its place.
    """
    if isinstance(value, dict):
        held = {name: item for name, item in value.items() if item is not None}
        return {name: _content(item, own) for item, own, name in _in_place(held, value)}
    if isinstance(value, list):
        return [_pair(item) if isinstance(item, tuple) else instance_of(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return _plain(value)


def _in_place(held: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[tuple[Any, str, str]]:
    """Each value, the column that it stands in, and the one that it belongs to."""
    for own, item in held.items():
        base = column_beside(own) if SIBLING_SEPARATOR in own else None
        belongs = base is not None and base in names and base not in held
        yield item, own, base if belongs and base is not None else own


def _content(item: Any, column: str) -> Any:
    """The value of a cell. A sibling for what fits nowhere holds JSON text."""
    if isinstance(item, str) and column.endswith(f"{SIBLING_SEPARATOR}json"):
        try:
            return json.loads(item)
        except ValueError:
            return item
    return instance_of(item)


def _pair(entry: tuple[Any, Any]) -> dict[str, Any]:
    key, value = entry
    return {"key": instance_of(key), "value": instance_of(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)


# ---------------------------------------------------------------------------- keywords


def _sentence(error: Any) -> str:
    where = re.sub(r"^\$\.?", "", error.json_path) or "the row"
    if error.validator in _LISTED_IN_MESSAGE:
        return f"{where}: {error.message[: 2 * VALUE_SHOWN_CHARS_MAX]}"
    limit = json.dumps(error.validator_value, ensure_ascii=False)
    shown = limit if len(limit) <= VALUE_SHOWN_CHARS_MAX else limit[:VALUE_SHOWN_CHARS_MAX] + "..."
    return f"{where}: breaks {error.validator} ({shown})"


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 - jsonschema's
    """`pattern` by RE2: Python's own expressions can take for ever on a text that somebody chose."""
    from jsonschema import ValidationError

    if isinstance(instance, str) and not pc.match_substring_regex(pa.scalar(instance), pattern).as_py():
        yield ValidationError("it does not match")


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 - likewise
    """`uniqueItems` in one pass: jsonschema's own compares every item with every other."""
    from jsonschema import ValidationError

    if not wanted or not isinstance(instance, list):
        return
    seen = {json.dumps(_canonical(item), sort_keys=True) for item in instance}
    if len(seen) < len(instance):
        yield ValidationError("an item comes twice")


def _multiple_of(validator: Any, unit: float, instance: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 - likewise
    """`multipleOf` by the digits that JSON writes: jsonschema's own divides doubles, and raises for what overflows."""
    from jsonschema import ValidationError

    if isinstance(instance, bool) or not isinstance(instance, int | float):
        return
    is_finite = isinstance(instance, int) or math.isfinite(instance)
    if not is_finite or _digits(instance) % _digits(unit):
        yield ValidationError("it is no multiple")


def _digits(number: float) -> Fraction:
    return Fraction(number) if isinstance(number, int) else Fraction(str(number))


def _canonical(value: Any) -> Any:
    """`value` with 1.0 as 1: to JSON Schema they are the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_canonical(item) for item in value]
    return value
