"""What is installed and how it is configured, read from the operators' own models.

`conveyord plugins`, `conveyord create` and docs/operators.md all show what is found here, so that they
cannot disagree with what the loader accepts.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from conveyord.core.errors import ConfigError
from conveyord.core.units import parse_bytes, parse_seconds
from conveyord.engine.contracts import Operator, Sink
from conveyord.engine.model_keys import NEEDED, Instead, keys_of
from conveyord.engine.registry import Kind, Registry
from conveyord.engine.secrets import Secret

KINDS: tuple[Kind, ...] = ("source", "transform", "sink")

_SIZES = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_WORDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    Secret: "secret",
    dict: "map",
    list: "list",
    tuple: "list",
    Any: "anything",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One key of an operator's configuration.

    key: dotted where it lies in a group, such as `commit.rows`. type: for people. default: as it would
    be written in a definition (`8MiB`, `60s`), None also where `required`. examples: what the author
    of the operator gave. aliases: other keys that mean the same. instead: keys of options beside one of which a
    required option may be left out.
    """

    key: str
    type: str
    required: bool
    default: Any
    description: str
    examples: tuple[Any, ...] = ()
    aliases: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """This option as `conveyord plugins -o json` shows it."""
        return {
            "key": self.key,
            "type": self.type,
            "required": self.required,
            "default": self.default,
            "description": self.description,
            "aliases": list(self.aliases),
            "instead": list(self.instead),
        }


@dataclass(frozen=True, slots=True)
class OperatorReference:
    """One installed operator. `problem` says why it cannot be used; then nothing of it is known but its name."""

    kind: Kind
    type: str
    package: str
    version: str
    description: str = ""
    pure: bool = False
    outputs: tuple[str, ...] = ()
    delivery: str | None = None
    options: tuple[Option, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        """`<kind>.<type>`, as the entry point is called."""
        return f"{self.kind}.{self.type}"

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        first = self.description.split("\n\n", 1)[0]
        sentence, dot, _ = first.partition(". ")
        return sentence + "." if dot else first

    def as_json(self) -> dict[str, Any]:
        """This operator as `conveyord plugins -o json` shows it."""
        return {
            "kind": self.kind,
            "type": self.type,
            "package": self.package,
            "version": self.version,
            "description": self.description,
            "pure": self.pure,
            "outputs": list(self.outputs),
            "delivery": self.delivery,
            "options": [option.as_json() for option in self.options],
            "problem": self.problem,
        }


def installed_operators(registry: Registry) -> list[OperatorReference]:
    """Every operator by kind and type. Imports all of them; one that cannot be used carries its problem."""
    return [reference_of(registry, kind, type_name) for kind in KINDS for type_name in registry.types(kind)]


def reference_of(registry: Registry, kind: Kind, type_name: str) -> OperatorReference:
    """The reference of one operator; a name that is not installed is a `problem` too."""
    points = registry.by_name.get(f"{kind}.{type_name}", ())
    distribution = points[0].dist if points else None
    package = distribution.name if distribution is not None else ""
    version = distribution.version if distribution is not None else ""
    try:
        operator = registry.operator(kind, type_name)
    except ConfigError as error:
        return OperatorReference(kind, type_name, package, version, problem=str(error))
    return OperatorReference(
        kind,
        type_name,
        package,
        version,
        description=description_of(operator.Config),
        pure=bool(getattr(operator, "pure", False)),
        outputs=tuple(getattr(operator, "outputs", ())),
        delivery=_delivery(operator),
        options=tuple(options_of(operator.Config)),
    )


def _delivery(operator: type[Operator]) -> str | None:
    # A sink that declares none is at fault, but it is not for a list to say so.
    return getattr(operator, "delivery", None) if issubclass(operator, Sink) else None


def description_of(model: type[BaseModel]) -> str:
    """A model's docstring with each paragraph on one line; empty if it has none of its own."""
    own = model.__dict__.get("__doc__") or ""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in own.strip().split("\n\n"))


def options_of(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """The options of a model in the order of its fields, those of groups in place of the group."""
    for name, field in model.model_fields.items():
        canonical, *others = keys_of(name, field)
        key = f"{prefix}{canonical}"
        group = group_of(field)
        if group is not None:
            yield from options_of(group, f"{key}.")
            continue
        yield Option(
            key=key,
            type=unit_of(field) or _type(field.annotation),
            required=field.is_required() or NEEDED in field.metadata,
            default=written_default(field),
            description=field.description or "",
            examples=tuple(field.examples or ()),
            aliases=tuple(others),
            instead=tuple(key for part in field.metadata if isinstance(part, Instead) for key in part.keys),
        )


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a mapping of further options, which may be left out."""
    choices = [field.annotation]
    if get_origin(field.annotation) in (Union, types.UnionType):
        choices = [choice for choice in get_args(field.annotation) if choice is not type(None)]
    only = choices[0] if len(choices) == 1 else None
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def unit_of(field: FieldInfo) -> str | None:
    """`size` or `duration` for a field that takes suffixes, or none at all."""
    parts = list(field.metadata)
    if get_origin(field.annotation) in (Union, types.UnionType):
        for choice in get_args(field.annotation):
            parts += get_args(choice)[1:] if get_origin(choice) is Annotated else ()
    parsers = [getattr(part, "func", None) for part in parts]
    return "size" if parse_bytes in parsers else "duration" if parse_seconds in parsers else None


def written_default(field: FieldInfo) -> Any:
    """The default as a JSON value that a definition could hold; None for a required field."""
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    unit = unit_of(field)
    if value is not None and unit is not None:
        return written_bytes(value) if unit == "size" else written_seconds(value)
    return _plain(value)


def written_bytes(size: int) -> str:
    """`size` with the largest unit that divides it: `8MiB`, `1536KiB`, `1000B`."""
    unit, factor = next(((unit, factor) for unit, factor in _SIZES if size and size % factor == 0), ("B", 1))
    return f"{size // factor}{unit}"


def written_seconds(seconds: float) -> str:
    """`seconds` as a duration: `60s`, `0.5s`, `250ms` only where seconds would need an exponent."""
    text = f"{seconds:g}"
    return f"{text}s" if "e" not in text else f"{seconds * 1000:f}ms"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin in (tuple, list, set, frozenset):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "map"
    return _WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))
