"""Checks the options of stages against the operators that the registry finds for their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from conveyord.core.errors import ConfigError
from conveyord.engine.contracts import Operator, Transform
from conveyord.engine.definitions.written import Written
from conveyord.engine.model_keys import with_canonical_keys
from conveyord.engine.registry import Kind, Registry, validate_options
from conveyord.engine.secrets import hidden_paths
from conveyord.engine.yaml_source import Path


class OperatorChecks:
    """The registry, asked once for each type."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[tuple[Kind, str], type[Operator] | str] = {}

    def find(self, kind: Kind, type_name: str) -> type[Operator] | str:
        """The operator of that type, or why there is none."""
        found = self._known.get((kind, type_name))
        if found is None:
            try:
                found = self._registry.operator(kind, type_name)
            except ConfigError as error:
                found = str(error)
            self._known[(kind, type_name)] = found
        return found

    def is_type(self, kind: Kind, name: str) -> bool:
        """Whether `name` is an operator's type."""
        return f"{kind}.{name}" in self._registry.by_name

    def outputs(self, kind: Kind, type_name: str, options: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The extra outputs of a stage. None if they cannot be known: no such type, or its options are wrong."""
        found = self.find(kind, type_name)
        if isinstance(found, str):
            return None
        if not issubclass(found, Transform):
            return ()
        if found.outputs_of.__func__ is Transform.outputs_of.__func__:  # type: ignore[attr-defined]
            return found.outputs
        try:
            return found.outputs_of(validate_options(found, dict(options)))
        except ValidationError:
            return None

    def check(self, written: Written, kind: Kind, type_name: str, options: Mapping[str, Any], *, base: Path) -> None:
        """Remember what is wrong with the options of one stage.

        base: where the options stand; `type` stands there too, or one level above.
        """
        operator = self.find(kind, type_name)
        if isinstance(operator, str):
            at = (*base, "type") if "type" in written.document.keys_at(base) else (*base[:-1], "type")
            written.at(at, operator)
            return
        hidden = [(*base, *path) for path in hidden_paths(operator.Config, options)]
        written.hide(hidden)
        try:
            config = validate_options(operator, dict(options))
        except ValidationError as error:
            written.report(error, base, operator.Config, f"{kind} {type_name}", hidden=hidden)
            return
        for key, mistake in operator.mistakes(config).items():
            written.at((*base, *((key,) if isinstance(key, str) else key)), mistake)

    def canonical(self, kind: Kind, type_name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """`options` with the canonical keys of the operator."""
        operator = self.find(kind, type_name)
        return dict(options) if isinstance(operator, str) else with_canonical_keys(operator.Config, options)
