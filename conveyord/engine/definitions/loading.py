"""Loads sets of definitions, and reports everything that is wrong with them at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine.definitions.files import read_files
from conveyord.engine.definitions.lowering import lower
from conveyord.engine.definitions.operators import OperatorChecks
from conveyord.engine.definitions.resources import Resource, Resources, read_resource
from conveyord.engine.definitions.written import Written
from conveyord.engine.problems import DefinitionError, Problem
from conveyord.engine.registry import Registry, installed
from conveyord.engine.variables import Variables
from conveyord.engine.yaml_source import YamlText


@dataclass(frozen=True, slots=True)
class DefinitionSet:
    """All resources of some files, checked. Both are in the order of the files."""

    pipelines: tuple[Pipeline, ...]
    resources: tuple[Resource, ...]


def load_pipelines(
    paths: Sequence[Path], *, registry: Registry | None = None, environ: Mapping[str, str] | None = None
) -> list[Pipeline]:
    """Read every pipeline of `paths`: files, and directories for all YAML files below them. Blocking.

    All documents form one set, in which stages may be named. Disabled pipelines are in the result.
    environ: what `${NAME}` is taken from; the process's environment by default.

    Raises DefinitionError with all problems, also if something cannot be read or there is no pipeline.
    """
    return _pipelines(load_set(paths, registry=registry, environ=environ))


def parse_pipelines(
    files: Mapping[str, bytes], *, registry: Registry | None = None, environ: Mapping[str, str] | None = None
) -> list[Pipeline]:
    """Like `load_pipelines`, for contents by the path that messages are to show."""
    return _pipelines(parse_set(files, registry=registry, environ=environ))


def load_set(
    paths: Sequence[Path], *, registry: Registry | None = None, environ: Mapping[str, str] | None = None
) -> DefinitionSet:
    """Like `load_pipelines`, with the resources that are no pipelines; there need not be any pipeline."""
    problems: list[Problem] = []
    return _loaded(read_files(paths, problems), problems, registry, environ)


def parse_set(
    files: Mapping[str, bytes], *, registry: Registry | None = None, environ: Mapping[str, str] | None = None
) -> DefinitionSet:
    """Like `load_set`, for contents by the path that messages are to show."""
    return _loaded(files, [], registry, environ)


def _pipelines(loaded: DefinitionSet) -> list[Pipeline]:
    if not loaded.pipelines:
        path = loaded.resources[0].written.text.path
        kinds = ", ".join(sorted({resource.kind for resource in loaded.resources}))
        raise DefinitionError([Problem(path, 0, 0, f"there is no Pipeline here, only {kinds}; add one")])
    return list(loaded.pipelines)


def _loaded(
    files: Mapping[str, bytes],
    problems: list[Problem],
    registry: Registry | None,
    environ: Mapping[str, str] | None,
) -> DefinitionSet:
    operators = OperatorChecks(installed() if registry is None else registry)
    substitute = Variables(os.environ if environ is None else environ)
    texts: list[YamlText] = []
    documents: list[Written] = []
    complete = not problems
    for path, content in files.items():
        try:
            text = YamlText(path, content)
        except DefinitionError as error:
            problems.extend(error.problems)
            complete = False
            continue
        texts.append(text)
        try:
            documents.extend(Written(text, document) for document in text.documents(substitute))
        except DefinitionError:
            complete = False  # the text keeps its own problems
    if complete and not documents:
        for text in texts:
            text.problem(1, 1, "the file holds no definition")
    found = [read_resource(written, operators) for written in documents]
    resources = Resources(complete=complete and None not in found)
    known = [resource for resource in found if resource is not None and resources.add(resource)]
    lowered = [lower(resource, resources, operators) for resource in known if resource.kind == "Pipeline"]
    problems.extend(problem for text in texts for problem in text.shown_problems())
    if problems:
        raise DefinitionError(problems)
    return DefinitionSet(tuple(pipeline for pipeline in lowered if pipeline is not None), tuple(known))
