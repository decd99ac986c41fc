"""Finds operators by entry point and checks their options.

Operators are named `<kind>.<type>` in the group `conveyord.operators`. Listing names imports nothing;
an operator's module is imported when someone asks for that operator, so that a pipeline pays only for
what it uses and a broken plugin hurts only those who name it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pydantic import ValidationError

from conveyord.core.errors import ConfigError
from conveyord.engine.contracts import Operator, OperatorConfig, Sink, Source, Transform

GROUP = "conveyord.operators"

Kind = Literal["source", "transform", "sink"]

_CONTRACTS: dict[Kind, type[Operator]] = {"source": Source, "transform": Transform, "sink": Sink}


@dataclass(frozen=True, slots=True)
class Registry:
    """The operators that can be named. Immutable; safe to share between threads."""

    by_name: dict[str, tuple[EntryPoint, ...]]

    @classmethod
    def of(cls, points: Iterable[EntryPoint]) -> Registry:
        """A registry of `points`. Two that claim one name are kept, and refused when it is asked for."""
        by_name: dict[str, tuple[EntryPoint, ...]] = {}
        for point in points:
            known = by_name.get(point.name, ())
            # The same installation can be found twice through sys.path; that is no conflict.
            if all(point.value != other.value for other in known):
                by_name[point.name] = (*known, point)
        return cls(by_name)

    def types(self, kind: Kind) -> tuple[str, ...]:
        """The types of one kind, sorted."""
        prefix = f"{kind}."
        return tuple(sorted(name.removeprefix(prefix) for name in self.by_name if name.startswith(prefix)))

    def operator(self, kind: Kind, type_name: str) -> type[Operator]:
        """The class behind `type_name`. Imports its module.

        Raises ConfigError if there is none, if two packages claim the name, if the import fails, or if
        what it names is not an operator of this kind.
        """
        points = self.by_name.get(f"{kind}.{type_name}", ())
        if not points:
            raise ConfigError(self._unknown(kind, type_name))
        if len(points) > 1:
            claims = " and ".join(_origin(point) for point in points)
            raise ConfigError(f"{kind} {type_name!r} is provided twice, by {claims}; uninstall one of them")
        point = points[0]
        try:
            loaded = point.load()
        except Exception as error:  # a plugin's module may raise anything while it is imported
            raise ConfigError(
                f"{kind} {type_name!r} cannot be loaded from {_origin(point)}: {type(error).__name__}: "
                f"{error}; repair or reinstall that package"
            ) from error
        contract = _CONTRACTS[kind]
        if not (isinstance(loaded, type) and issubclass(loaded, contract)):
            raise ConfigError(f"{kind} {type_name!r} from {_origin(point)} is not a {contract.__name__} operator")
        return loaded

    def _unknown(self, kind: Kind, type_name: str) -> str:
        types = self.types(kind)
        close = get_close_matches(type_name, types, n=1)
        if close:
            return f"unknown {kind} type {type_name!r}; did you mean {close[0]!r}?"
        other = next((k for k in _CONTRACTS if f"{k}.{type_name}" in self.by_name), None)
        if other is not None:
            return f"{type_name!r} is a {other}, not a {kind}; the {kind} types are {', '.join(types)}"
        if not types:
            return f"unknown {kind} type {type_name!r}: no operators are installed; run: pip install -e ."
        return f"unknown {kind} type {type_name!r}; the {kind} types are {', '.join(types)}"


@cache
def installed() -> Registry:
    """The operators of every installed package. Read once per process."""
    return Registry.of(entry_points(group=GROUP))


def validate_options(operator: type[Operator], options: dict[str, Any]) -> OperatorConfig:
    """The operator's configuration from the keys of its stage.

    Validated as strict JSON, so that text is never taken for a number or a number for text, while
    lists may fill tuples and text may fill enumerations and paths.
    Raises pydantic.ValidationError, whose locations the definition loader turns into file positions.
    """
    return operator.Config.model_validate_json(json.dumps(options), strict=True)


def stage_config(operator: type[Operator], options: dict[str, Any], *, stage: str) -> OperatorConfig:
    """Like `validate_options`, for callers without a file. Raises ConfigError with every problem."""
    try:
        return validate_options(operator, options)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'options'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ConfigError(f"stage {stage!r}: {problems}") from error


def _origin(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "an unknown package"
    return f"{package} ({point.value})"
