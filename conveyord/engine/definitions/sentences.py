"""Turns what pydantic finds into sentences that name the value, what is wanted, and a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic_core import ErrorDetails

from conveyord.core.pipeline.manifest import GRAPH_KEYS, LINEAR_KEYS, NOT_YET, GraphBody, PipelineBody, PipelineManifest
from conveyord.engine.model_keys import canonical_keys, keys_of, spellings
from conveyord.engine.yaml_scalars import plain_value
from conveyord.engine.yaml_source import Path

Model = type[BaseModel]

HIDDEN_VALUE = "a value that is not shown"

_JSON_WORDS = {dict: "a mapping", list: "a list", bool: "true or false", int: "a whole number", float: "a number"}
_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
}
_MUST_BE = re.compile(r"(?P<name>.+?) must be (?P<wanted>.+), got (?P<got>[^;]+)")
_EDGE = "an edge is [from, to], or a mapping with the keys from and to"


def name_of(path: Path) -> str:
    """What a reader calls the value at `path`: its key, or its number in a list."""
    last = path[-1]
    return repr(last) if isinstance(last, str) else f"item {last + 1} of {name_of(path[:-1])}"


def joined(sentences: list[str]) -> list[str]:
    """`sentences` with those that differ only in what a value must be made into one.

    The branches of a union each report the same value; one sentence says what all of them want.
    """
    wanted: dict[tuple[str, str], list[str]] = {}
    others = []
    for sentence in sentences:
        match = _MUST_BE.fullmatch(sentence)
        if match is None:
            others.append(sentence)
        else:
            wanted.setdefault((match["name"], match["got"]), []).append(match["wanted"])
    return others + [f"{name} must be {' or '.join(choices)}, got {got}" for (name, got), choices in wanted.items()]


def sentence_of(
    detail: ErrorDetails, *, shown: str, value: Any, name: str, model: Model | None, variable: str | None = None
) -> str:
    """One problem of pydantic's in our words.

    shown: the value as it may be shown. name: what the value is called. model: the one whose keys stand
    where the problem is. variable: the `${...}` that alone stands between the quotes of the value, if any.
    """
    kind, context = detail["type"], detail.get("ctx", {})
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    if "pair" in detail["loc"] and kind in ("missing", "too_long"):
        return _EDGE
    if kind == "missing":
        return f"the key {key!r} is missing in {name}"
    if kind == "extra_forbidden":
        return _unknown_key(key, model)
    if kind == "literal_error" or kind == "enum":
        return _bad_choice(name, str(context["expected"]), value, shown)
    if kind in _WANTED:
        hint = _variable_hint(_WANTED[kind], value, variable) or _quote_hint(_WANTED[kind], value)
        return f"{name} must be {_WANTED[kind]}, got {shown}{hint}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", detail["msg"])) if shown != HIDDEN_VALUE else f"{name} cannot be used"
    if kind == "string_too_short" and value == "":
        return f"{name} must not be empty"
    if kind in ("too_short", "too_long"):
        return _bad_count(kind, name, context)
    message = detail["msg"]
    if message.startswith("Input should be "):
        return f"{name} must be {message.removeprefix('Input should be ')}, got {shown}"
    return f"{name}: {message[:1].lower()}{message[1:]}, got {shown}"


def _bad_count(kind: str, name: str, context: dict[str, Any]) -> str:
    actual = context["actual_length"]
    if kind == "too_short":
        return f"{name} needs at least {context['min_length']}, got {actual or 'none'}"
    count = "more" if actual is None else actual
    return f"{name} takes at most {context['max_length']}, got {count}; split the pipeline"


def _unknown_key(key: str, model: Model | None) -> str:
    if model is None:
        return f"unknown key {key!r}"
    if key in NOT_YET and (issubclass(model, PipelineBody) or model is PipelineManifest or key == "topic_mapping"):
        return f"{key!r}: {NOT_YET[key]}"
    if key in LINEAR_KEYS and issubclass(model, GraphBody):
        return f"{key!r} belongs to the linear form; a graph has {', '.join(GRAPH_KEYS)}"
    canonical = spellings(model).get(key)
    if canonical is not None:
        return f"{key!r} is another spelling of {canonical!r}, which is given too; remove one of them"
    known = canonical_keys(model)
    close = close_to(key, [*known, *spellings(model)])
    if close is not None:
        return f"unknown key {key!r}; did you mean {spellings(model).get(close, close)!r}?"
    return f"unknown key {key!r}" + (f"; the keys here are {', '.join(known)}" if known else "; no keys are known here")


def _bad_choice(name: str, expected: str, value: Any, shown: str) -> str:
    choices = expected.replace("'", "").replace(" or ", ", ").split(", ")
    sentence = f"{name} must be {' or '.join(choices)}, got {shown}"
    close = close_to(value, choices) if isinstance(value, str) and len(choices) > 1 else None
    return sentence if close is None else f"{sentence}; did you mean {close!r}?"


def close_to(word: str, known: list[str]) -> str | None:
    """The known word that `word` is probably meant to be, whatever its case and separators."""
    folded = {name.lower().replace("_", "").replace("-", ""): name for name in known}
    matches = get_close_matches(word.lower().replace("_", "").replace("-", ""), folded, n=1)
    return folded[matches[0]] if matches else None


def _quote_hint(wanted: str, value: Any) -> str:
    if wanted == "text" and isinstance(value, bool | int | float):
        return "; put it in quotes"
    if wanted == "true or false" and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
        return "; YAML 1.2 knows only true and false"
    if wanted == "a list" and isinstance(value, str):
        return f"; write [{value}]"
    return ""


def _variable_hint(wanted: str, value: Any, variable: str | None) -> str:
    """How to write a variable in quotes so that it is what is wanted; nothing if its value is not that."""
    if variable is None or not isinstance(value, str):
        return ""
    try:
        meant = plain_value(value)
    except ValueError:
        return ""  # no number that a setting can have
    fits = {"a whole number": int, "a number": int | float, "true or false": bool}.get(wanted)
    if fits is None or not isinstance(meant, fits) or (isinstance(meant, bool) and fits is not bool):
        return ""
    return f"; quotes make it text: write {variable} without them, outside {{ }} and [ ]"


def shown_value(value: Any) -> str:
    """`value` for a sentence, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return _JSON_WORDS[type(value)]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:60]!r}…"
    return str(value)


def model_at(model: Model, path: Path) -> Model | None:
    """The model whose keys stand at `path` below `model`, or None where keys are free."""
    current: list[tuple[str, Model]] = [("", model)]
    for part in path:
        tagged = [(tag, candidate) for tag, candidate in current if tag and tag == part]
        if tagged:
            current = tagged
            continue
        fields = [_annotation(candidate, part) for _, candidate in current]
        found = next((annotation for annotation in fields if annotation is not None), None)
        if found is not None:
            current = list(_models_in(found))
        elif isinstance(part, str) and not current:
            return None
    return next((candidate for _, candidate in current), None)


def _annotation(model: Model, key: str | int) -> Any:
    return next((field.annotation for name, field in model.model_fields.items() if key in keys_of(name, field)), None)


def _models_in(annotation: Any, tag: str = "") -> Iterator[tuple[str, Model]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield tag, annotation
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        tags = [mark.tag for mark in arguments[1:] if isinstance(mark, Tag)]
        yield from _models_in(arguments[0], tags[0] if tags else tag)
    elif origin in (Union, UnionType, list, tuple, dict, set, frozenset):
        for argument in arguments:
            yield from _models_in(argument, tag)
