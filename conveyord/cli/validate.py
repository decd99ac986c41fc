"""`conveyord validate`: everything that is wrong with definitions, at once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.exits import EXIT_CONFIG, print_json, report_error, reports_failures
from conveyord.cli.options import GivenPath, output_option

if TYPE_CHECKING:
    from conveyord.core.pipeline.graph import Pipeline
    from conveyord.engine.definitions import DefinitionSet
    from conveyord.engine.problems import Problem


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=GivenPath())
@output_option("text", "json")
@reports_failures
def validate(paths: tuple[Path, ...], output: str) -> int:
    """Check definition files, and all files of directories, as one set.

    Every problem of every file is shown with its place. Nothing is connected to, and nothing runs.

    \b
    Exit codes: 0 all is well, 2 something is wrong.
    """
    from conveyord.core.units import counted
    from conveyord.engine.definitions import load_set
    from conveyord.engine.problems import DefinitionError

    try:
        loaded = load_set(paths)
    except DefinitionError as error:
        if output == "json":
            print_json({"ok": False, "resources": [], "problems": [_problem(one) for one in error.problems]})
        else:
            report_error(error)
            click.echo(counted(len(error.problems), "problem"), err=True)
        return EXIT_CONFIG
    if output == "json":
        print_json({"ok": True, "resources": _resources(loaded), "problems": []})
        return 0
    for resource in _resources(loaded):
        about = " -> ".join(resource["types"]) if resource["linear"] else ", ".join(resource["types"])
        disabled = "" if resource["enabled"] else "  (disabled)"
        click.echo(f"{resource['path']}:{resource['line']}: {_name(resource)}: {about}{disabled}")
    click.echo(f"{counted(len(loaded.resources), 'definition')}, no problems")
    return 0


def _name(resource: dict[str, Any]) -> str:
    return f"{resource['kind']} {resource['namespace']}/{resource['name']}"


def _resources(loaded: DefinitionSet) -> list[dict[str, Any]]:
    """Every document, in the order of the files. types: the operators' of its stages."""
    pipelines = {pipeline.identity: pipeline for pipeline in loaded.pipelines}
    described = []
    for resource in loaded.resources:
        path, _, line = resource.place.rpartition(":")
        pipeline = pipelines.get(resource.identity) if resource.kind == "Pipeline" else None
        described.append(
            {
                "kind": resource.kind,
                "namespace": resource.namespace,
                "name": resource.name,
                "path": path,
                "line": int(line),
                "types": [resource.type] if pipeline is None else [stage.type for stage in pipeline.stages],
                "linear": pipeline is None or _is_line(pipeline),
                "enabled": pipeline is None or pipeline.enabled,
            }
        )
    return described


def _is_line(pipeline: Pipeline) -> bool:
    names = [stage.name for stage in pipeline.stages]
    return [(edge.source, edge.target) for edge in pipeline.edges] == list(pairwise(names))


def _problem(problem: Problem) -> dict[str, Any]:
    return {"path": problem.path, "line": problem.line, "column": problem.column, "message": problem.message}
