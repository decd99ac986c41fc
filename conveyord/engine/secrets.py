"""Secrets in configurations: given by reference or literally, and never shown.

An operator declares a field of type `Secret`, and calls `reveal` when it connects. A field that is no
secret but may hold some, such as the properties of a catalog, is annotated with `HIDDEN`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from conveyord.core.errors import ConfigError
from conveyord.engine.model_keys import fields_by_key

SHOWN: Final = "***"
SECRET_BYTES_MAX = 64 * 1024  # a key with its chain of certificates; more is the wrong file
_REFERENCES = ("env:", "file:")


class Hidden:
    """Marks a field that may be a mapping with secrets in it: none of its values is shown, but references are."""


HIDDEN: Final = Hidden()


class Secret:
    """A secret: `env:NAME`, `file:PATH`, or the secret itself. Its text appears in no rendering of it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself. Reads a file, blocking. The line end at the end of a file is no part of it.

        Raises ConfigError if the variable is not set or the file cannot be read.
        """
        kind, _, where = self._text.partition(":")
        if kind == "env":
            value = os.environ.get(where)
            if value is None:
                raise ConfigError(
                    f"the secret {self._text}: the variable {where!r} is not set; set it or use file:PATH"
                )
            return value
        if kind == "file":
            return self._from_file(where)
        return self._text

    def _from_file(self, where: str) -> str:
        try:
            with Path(where).expanduser().open("rb") as file:
                content = file.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(f"the secret {self._text} cannot be read: {reason}") from error
        if len(content) > SECRET_BYTES_MAX:
            raise ConfigError(f"the secret {self._text} has more than {SECRET_BYTES_MAX} bytes; is it the right file?")
        try:
            return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ConfigError(f"the secret {self._text} is not UTF-8 text") from error

    def __str__(self) -> str:
        return shown(self._text)

    def __repr__(self) -> str:
        return f"Secret({shown(self._text)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text in, `Secret` kept; dumped as it is shown."""
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(min_length=1),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A string that editors mask."""
        description = "A secret: `env:NAME`, `file:PATH`, or the secret itself, which is never shown."
        return {"type": "string", "minLength": 1, "format": "password", "description": description}


def resolved(properties: Mapping[str, str], key: str) -> dict[str, str]:
    """`properties`, each `env:NAME` and `file:PATH` replaced by what it refers to; `file://` is a URI. Blocking.

    key: what they are called. Raises ConfigError naming the property, never its value.
    """
    found = {}
    for name, text in properties.items():
        try:
            found[name] = text if text.startswith("file://") else Secret(text).reveal()
        except ConfigError as error:
            raise ConfigError(f"{key}.{name}: {error}") from error
    return found


def shown(text: str) -> str:
    """How a secret's text may be shown: a reference as it is, anything else not at all."""
    return text if text.startswith(_REFERENCES) else SHOWN


def redacted(model: type[BaseModel], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of an operator with the configuration `model` as they may be shown. Invalid ones too."""
    hidden = hidden_paths(model, options)
    return {key: _without(value, (key,), hidden) for key, value in options.items()}


def _without(value: Any, path: tuple[str | int, ...], hidden: set[tuple[str | int, ...]]) -> Any:
    if path in hidden:
        return _all_hidden(value)
    if isinstance(value, Mapping):
        return {key: _without(item, (*path, key), hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without(item, (*path, index), hidden) for index, item in enumerate(value)]
    return value


def _all_hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _all_hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_all_hidden(item) for item in value]
    return shown(value) if isinstance(value, str) else SHOWN


def hidden_paths(model: type[BaseModel], options: Mapping[str, Any]) -> set[tuple[str | int, ...]]:
    """The paths in `options` of values that must not be shown, by the declarations of `model`."""
    return set(_hidden_in(model, options, ()))


def _hidden_in(annotation: Any, value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if annotation in (Secret, SecretStr):
        yield path
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(value, Mapping):
            yield from _hidden_in_model(annotation, value, path)
    elif get_origin(annotation) is Annotated:
        kind, *marks = get_args(annotation)
        if any(isinstance(mark, Hidden) for mark in marks):
            yield from _hidden_below(value, path)
        else:
            yield from _hidden_in(kind, value, path)
    elif get_origin(annotation) in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _hidden_in(choice, value, path)
    elif isinstance(value, Mapping):
        for item_type in get_args(annotation)[1:2]:
            for key, item in value.items():
                yield from _hidden_in(item_type, item, (*path, key))
    elif isinstance(value, list | tuple):
        for item_type in get_args(annotation)[:1]:
            for index, item in enumerate(value):
                yield from _hidden_in(item_type, item, (*path, index))


def _hidden_below(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Every value in a mapping; text in its place is a name."""
    if isinstance(value, Mapping):
        yield from ((*path, key) for key in value)


def _hidden_in_model(
    model: type[BaseModel], value: Mapping[str, Any], path: tuple[str | int, ...]
) -> Iterator[tuple[str | int, ...]]:
    fields = fields_by_key(model)
    for key, item in value.items():
        field = fields.get(key)
        if field is None:
            continue
        if any(isinstance(mark, Hidden) for mark in field.metadata):
            yield from _hidden_below(item, (*path, key))
        else:
            yield from _hidden_in(field.annotation, item, (*path, key))
