"""Starter definitions: a pipeline of named operators with every option written out and explained.

What an operator needs is filled in, from the examples its author gives (`Field(examples=[...])`); what has a
default is commented out with it, as `#key: value`, so that removing the `#` changes nothing until the
value is changed.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.manifest import API_VERSION
from conveyord.engine.reference import OperatorReference, Option, reference_of
from conveyord.engine.registry import Kind, Registry

NAME = "my-pipeline"
COMMENT_CHARS_MAX = 100  # a comment is wrapped at this width, whatever its indentation

_BY_TYPE: dict[str, Any] = {
    "text": "change-me",
    "secret": "env:CHANGE_ME",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "size": "1MiB",
    "duration": "1s",
}
_PLAIN = re.compile(r"[A-Za-z./][\w./*-]*")
_WORDS = ("true", "false", "null")


def starter(spec: str, registry: Registry, *, name: str = NAME) -> str:
    """The YAML text of a pipeline `SOURCE/TRANSFORM,.../SINK`; there may be no transform at all.

    Raises ConfigError if `spec` has another shape, or names an operator that is not installed.
    """
    parts = spec.split("/")
    if len(parts) != 3 or not parts[0] or not parts[2]:
        raise ConfigError(
            f"{spec!r} is not SOURCE/TRANSFORM/SINK; write such as file_jsonl/filter,json_flatten/iceberg, "
            "or file_jsonl//stdout_pretty without a transform"
        )
    source = _usable(registry, "source", parts[0])
    steps = [_usable(registry, "transform", step) for step in parts[1].split(",")] if parts[1] else []
    sink = _usable(registry, "sink", parts[2])
    lines = [
        f"# {' -> '.join(operator.type for operator in (source, *steps, sink))}",
        "#",
        "# An option behind a # has the value that is shown. Remove the # to set another.",
        "# `conveyord validate FILE` checks this file, `conveyord run FILE` runs it.",
        f"apiVersion: {API_VERSION}",
        "kind: Pipeline",
        "metadata:",
        f"  name: {_scalar(name)}",
        "spec:",
        "  source:",
        *_indented(_stage(source), 4),
    ]
    if steps:
        lines.append("  steps:")
        for step in steps:
            lines += _item(_stage(step), 4)
    lines += ["  sink:", *_indented(_stage(sink), 4)]
    return "\n".join(lines) + "\n"


def _usable(registry: Registry, kind: Kind, type_name: str) -> OperatorReference:
    found = reference_of(registry, kind, type_name.strip())
    if found.problem is not None:
        raise ConfigError(found.problem)
    return found


def _stage(operator: OperatorReference) -> list[str]:
    """The lines of one stage, its keys in the first column."""
    summary = [f"# {line}" for line in _wrapped(operator.description)]
    return [*summary, f"type: {operator.type}", *_options(operator.options)]


def _options(options: Sequence[Option], depth: int = 0) -> Iterator[str]:
    """The lines of `options`, which share the first `depth` parts of their keys."""
    groups: dict[str, list[Option]] = {}
    for option in options:
        groups.setdefault(option.key.split(".")[depth], []).append(option)
    for key, members in groups.items():
        if members[0].key.count(".") == depth:
            yield from _option(members[0], key)
            continue
        inner = [f"{key}:", *_indented(_options(members, depth + 1), 2)]
        if any(member.required for member in members):
            yield from inner
        else:  # nothing in it is needed, so that the whole group is commented out, its options uncommented in it
            yield from (f"#{line}" for line in _uncommented(inner))


def _option(option: Option, key: str) -> Iterator[str]:
    note = f"({option.type}, required)" if option.required else f"({option.type})"
    yield from (f"# {line}" for line in _wrapped(f"{option.description} {note}".strip()))
    if option.required:
        yield f"{key}: {_scalar(_example(option))}"
    else:
        yield f"#{key}: {_scalar(option.default)}"


def _example(option: Option) -> Any:
    """A value for a required option: the author's, or one that fits its type."""
    if option.examples:
        return option.examples[0]
    first = option.type.split(" or ", 1)[0]
    if first.startswith("`"):
        return first.strip("`")
    if first.startswith("list of "):
        return [_BY_TYPE.get(first.removeprefix("list of "), "change-me")]
    return {} if first.startswith("map") else _BY_TYPE.get(first, "change-me")


def uncommented(text: str) -> str:
    """A starter with every option set, to its default where that was behind a `#`."""
    return "\n".join(_uncommented(text.split("\n")))


def _uncommented(lines: Sequence[str]) -> list[str]:
    # A sentence has one space behind its #; an option has none, and what lies in a group several.
    return [re.sub(r"^(\s*)#(?=\S|  )", r"\1", line) for line in lines]


def _indented(lines: Iterator[str] | Sequence[str], columns: int) -> list[str]:
    return [" " * columns + line for line in lines]


def _item(lines: list[str], columns: int) -> list[str]:
    """`lines` as one item of a list; the comments on top of them stand above the dash."""
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    head, (opening, *rest) = lines[:first], lines[first:]
    return _indented([*head, f"- {opening}", *_indented(rest, 2)], columns)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), COMMENT_CHARS_MAX, break_long_words=False, break_on_hyphens=False)


def _scalar(value: Any) -> str:
    """`value` as YAML on one line. Text is quoted unless it can be nothing but text."""
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        spaced = re.fullmatch(r"[A-Z]+( [\w*.]+)+", value)
        # 8MiB and 60s start with a digit and are still text: a letter ends them.
        united = re.fullmatch(r"[0-9.]+(ms|[smhd]|[KMGT]?i?B)", value)
        return value if plain or spaced or united else orjson.dumps(value).decode()
    return orjson.dumps(value).decode()
