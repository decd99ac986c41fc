"""`conveyord plugins`: the operators that are installed, and how each is configured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.exits import print_json, reports_failures
from conveyord.cli.options import output_option

if TYPE_CHECKING:
    from conveyord.engine.reference import OperatorReference, Option

WIDTH_MAX = 100  # of a description, in characters
_HEAD = ("kind", "type", "pure", "outputs", "package", "")


@click.command()
@click.argument("name", required=False)
@output_option("table", "json")
@reports_failures
def plugins(name: str | None, output: str) -> int:
    """List the installed operators, or explain the configuration of one.

    NAME is a type such as `iceberg`, or `sink.iceberg` where several kinds have the type. Packages add
    operators through the entry-point group conveyord.operators; `pure` ones may be shared by pipelines.
    """
    from conveyord.engine.reference import installed_operators
    from conveyord.engine.registry import installed

    if name is None:
        found = installed_operators(installed())
        if output == "json":
            print_json([operator.as_json() for operator in found])
        else:
            click.echo("\n".join(_listed(found)))
        return 0
    named = _named(name)
    if output == "json":
        print_json([operator.as_json() for operator in named])
    else:
        click.echo("\n\n".join("\n".join(_explained(operator)) for operator in named))
    return 0


def _named(name: str) -> list[OperatorReference]:
    """The operators called `name`. Raises ConfigError if there is none, or none that can be loaded."""
    from difflib import get_close_matches

    from conveyord.core.errors import ConfigError
    from conveyord.engine.reference import KINDS, reference_of
    from conveyord.engine.registry import installed

    kinds = [kind for kind in KINDS if name.startswith((f"{kind}.", f"{kind}/"))]
    type_name = name[len(kinds[0]) + 1 :] if kinds else name
    found = [
        reference_of(installed(), kind, type_name) for kind in kinds or KINDS if type_name in installed().types(kind)
    ]
    if not found:
        known = sorted({known for kind in kinds or KINDS for known in installed().types(kind)})
        close = get_close_matches(type_name, known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"installed are {', '.join(known)}"
        raise ConfigError(f"no operator is called {name!r}; {remedy}")
    if all(operator.problem for operator in found):
        raise ConfigError(str(found[0].problem))
    return found


def _listed(found: list[OperatorReference]) -> Iterator[str]:
    rows = [_HEAD]
    for operator in found:
        about = f"cannot be used: {operator.problem}" if operator.problem else operator.summary
        package = f"{operator.package} {operator.version}".strip()
        outputs = ", ".join(operator.outputs)
        rows.append((operator.kind, operator.type, "yes" if operator.pure else "", outputs, package, about))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def _explained(operator: OperatorReference) -> Iterator[str]:
    import textwrap

    if operator.problem:
        yield operator.problem
        return
    yield f"{operator.kind} {operator.type}  ({operator.package} {operator.version})"
    for paragraph in operator.description.split("\n\n"):
        yield ""
        yield from textwrap.wrap(paragraph, WIDTH_MAX)
    facts = []
    if operator.pure:
        facts.append("Pure: pipelines that run together share it.")
    if operator.outputs:
        facts.append(f"Further outputs: {', '.join(operator.outputs)}.")
    if operator.delivery:
        facts.append(f"Delivers {operator.delivery.replace('-', ' ')}.")
    if facts:
        yield ""
        yield " ".join(facts)
    for option in operator.options:
        yield ""
        yield f"  {option.key}  {option.type}, {_default(option)}"
        about = option.description
        if option.aliases:
            about += f" Also accepted: {', '.join(option.aliases)}."
        yield from textwrap.wrap(about, WIDTH_MAX, initial_indent="      ", subsequent_indent="      ")


def _default(option: Option) -> str:
    if option.required:
        return f"required unless there is {' or '.join(option.instead)}" if option.instead else "required"
    return f"default {_shown(option.default)}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
