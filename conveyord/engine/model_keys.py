"""The keys that a configuration model takes: the canonical one of each field, and its other spellings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

NEEDED: Final = "needed"
"""Marks an option that has a default only because another option may stand for it: people are shown it as required."""


@dataclass(frozen=True, slots=True)
class Instead:
    """Marks a required option that may be left out beside one of the options `keys`."""

    keys: tuple[str, ...]


def keys_of(name: str, field: FieldInfo) -> tuple[str, ...]:
    """What a file may call the field `name`: the canonical key first, then other spellings."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(choice for choice in alias.choices if isinstance(choice, str))
    return (alias,) if isinstance(alias, str) else (field.alias or name,)


@cache
def fields_by_key(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The field of every key that `model` takes, whatever its spelling."""
    return {key: field for name, field in model.model_fields.items() for key in keys_of(name, field)}


@cache
def spellings(model: type[BaseModel]) -> Mapping[str, str]:
    """The canonical key of every other spelling that `model` takes."""
    keys = (keys_of(name, field) for name, field in model.model_fields.items())
    return {other: canonical for canonical, *others in keys for other in others}


@cache
def canonical_keys(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of `model`, in the order in which it declares them."""
    return tuple(keys_of(name, field)[0] for name, field in model.model_fields.items())


def with_canonical_keys(model: type[BaseModel], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with other spellings replaced. One that is given beside its canonical key stays, to be refused."""
    others = spellings(model)
    return {
        key if key not in others or others[key] in options else others[key]: value for key, value in options.items()
    }
