"""Which model each key of a definition belongs to: what it is called there, and whether it is a secret.

Follows the manifest's models, and for the keys of a stage the model of the operator that its type names. Keys
that no model knows are passed over; the loader reports them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.manifest import MODELS, GraphBody, LinearBody, body_form, manifest_kind
from conveyord.core.pipeline.stages import ResourceSpec, StageSpec
from conveyord.engine.model_keys import keys_of
from conveyord.engine.registry import Kind, Registry
from conveyord.engine.secrets import Hidden, Secret
from conveyord.engine.yaml_layout import Collection, Entry, Leaf, Page

KIND_OF_KEY: dict[str, Kind] = {
    "source": "source",
    "sources": "source",
    "steps": "transform",
    "transforms": "transform",
    "sink": "sink",
    "sinks": "sink",
}
"""What a stage under such a key of a pipeline is."""

_KIND_OF_RESOURCE: dict[str, Kind] = {"Source": "source", "Transform": "transform", "Sink": "sink"}


@dataclass(frozen=True, slots=True)
class Keyed:
    """One entry of a mapping. canonical: its key as the model calls it, None if no model knows the key.

    has_canonical: the same mapping also has the canonical key. secret: the value must not be shown.
    """

    entry: Entry
    canonical: str | None
    has_canonical: bool
    secret: bool


def keyed_entries(page: Page, registry: Registry) -> Iterator[Keyed]:
    """Every entry of every mapping of a document, flow mappings included."""
    root = page.root
    if isinstance(root, Collection) and root.mapping:
        plain = {entry.key.value: _text(entry.value) for entry in root.entries if entry.key is not None}
        name = manifest_kind(plain)
        yield from _Walk(registry, _KIND_OF_RESOURCE.get(name)).mapping(root, MODELS[name], None)


def _text(value: Leaf | Collection) -> str:
    return value.value if isinstance(value, Leaf) else ""


class _Walk:
    def __init__(self, registry: Registry, resource: Kind | None) -> None:
        self._registry = registry
        self._resource = resource

    def mapping(
        self, node: Collection, model: type[BaseModel] | None, kind: Kind | None, *, secret: bool = False
    ) -> Iterator[Keyed]:
        """The entries of a mapping of `model`, and all below it. kind: what a stage here would be."""
        operator = self._operator(node, model, kind)
        keys = {entry.key.value for entry in node.entries if entry.key is not None}
        for entry in node.entries:
            key = entry.key.value if entry.key is not None else ""
            owner = model if model is not None and _find(model, key) is not None else operator
            found = None if owner is None else _find(owner, key)
            if found is None:
                yield Keyed(entry, None, has_canonical=False, secret=secret)
                inner = operator if model is ResourceSpec and key == "config" else None
                yield from self._below(entry.value, [inner] if inner is not None else [], None, secret=secret)
                continue
            canonical, field = found
            hidden = secret or is_secret(field)
            yield Keyed(entry, canonical, has_canonical=canonical in keys and canonical != key, secret=hidden)
            models = list(models_in(field.annotation))
            yield from self._below(entry.value, models, KIND_OF_KEY.get(canonical), secret=hidden)

    def _below(
        self, value: Leaf | Collection, models: list[type[BaseModel]], kind: Kind | None, *, secret: bool
    ) -> Iterator[Keyed]:
        if isinstance(value, Leaf):
            return
        if value.mapping:
            yield from self.mapping(value, _chosen(models, value), kind, secret=secret)
            return
        for entry in value.entries:
            yield Keyed(entry, None, has_canonical=False, secret=secret)
            yield from self._below(entry.value, models, kind, secret=secret)

    def _operator(self, node: Collection, model: type[BaseModel] | None, kind: Kind | None) -> type[BaseModel] | None:
        """The configuration model of a stage's operator, if this is a stage and its type is installed."""
        kind = self._resource if model is ResourceSpec else kind if model is StageSpec else None
        type_entry = node.entry("type")
        if kind is None or type_entry is None:
            return None
        try:
            return self._registry.operator(kind, _text(type_entry.value)).Config
        except ConfigError:
            return None


def _chosen(models: list[type[BaseModel]], node: Collection) -> type[BaseModel] | None:
    """The model that a mapping is meant for."""
    if LinearBody in models:
        keys = {entry.key.value: None for entry in node.entries if entry.key is not None}
        return GraphBody if body_form(keys) == "graph" else LinearBody
    return models[0] if models else None


def _find(model: type[BaseModel], key: str) -> tuple[str, FieldInfo] | None:
    """The field that `key` names in `model`, and its canonical key."""
    for name, field in model.model_fields.items():
        accepted = keys_of(name, field)
        if key in accepted:
            return accepted[0], field
    return None


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that a value of `annotation`, or an item of it, may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType, list, tuple, set, frozenset):
        for argument in get_args(annotation):
            yield from models_in(argument)


def is_secret(field: FieldInfo) -> bool:
    """Whether a field's value must not be shown."""
    marked = any(isinstance(mark, Hidden) for mark in field.metadata)
    return marked or any(kind is Secret or isinstance(kind, Hidden) for kind in _parts_of(field.annotation))


def _parts_of(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _parts_of(argument)
