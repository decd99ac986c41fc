"""Loads pipeline definitions and reports everything that is wrong with them, with places in the file.

A manifest is checked against the models of core/pipeline/manifest.py, and each stage's options against
the operator that the registry finds for its type. Both report at once, so that a user sees all
problems of a file in one run.
"""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.manifest import (
    API_VERSION,
    GRAPH_KEYS,
    NOT_YET,
    PipelineBody,
    PipelineSpec,
    StageSpec,
)
from conveyord.engine.problems import DefinitionError, Problem
from conveyord.engine.registry import Kind, Registry, installed, validate_options
from conveyord.engine.yaml_source import FILE_BYTES_MAX, Document, YamlText, place_of

_LATER_KINDS = ("Source", "Transform", "Sink")
_JSON_WORDS = {
    dict: "a mapping",
    list: "a list",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}
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


def load_pipelines(path: Path, *, registry: Registry | None = None) -> list[PipelineSpec]:
    """Read every pipeline of a file. Blocking.

    Raises DefinitionError with all problems, also if the file cannot be read or holds no pipeline.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
            size = len(content) if len(content) <= FILE_BYTES_MAX else path.stat().st_size
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DefinitionError([Problem(str(path), 0, 0, f"cannot be read: {reason}")]) from error
    if size > FILE_BYTES_MAX:
        reason = f"the file has {size} bytes, the limit is {FILE_BYTES_MAX}; split the file"
        raise DefinitionError([Problem(str(path), 0, 0, reason)])
    return parse_pipelines(content, str(path), registry=registry)


def parse_pipelines(content: bytes, path: str, *, registry: Registry | None = None) -> list[PipelineSpec]:
    """Like `load_pipelines` for a file's content; `path` is only shown. Raises DefinitionError."""
    text = YamlText(path, content)
    loader = _Loader(text, installed() if registry is None else registry)
    documents = text.documents()
    if not documents:
        text.problem(1, 1, "the file holds no pipeline")
    pipelines = [pipeline for document in documents if (pipeline := loader.load(document)) is not None]
    if text.problems:
        raise DefinitionError(text.problems)
    return pipelines


class _Loader:
    def __init__(self, text: YamlText, registry: Registry) -> None:
        self._text = text
        self._registry = registry

    def load(self, document: Document) -> PipelineSpec | None:
        """The pipeline of one document, or None after remembering problems."""
        if not isinstance(document.value, dict):
            self._at(document, (), f"a definition is a mapping, got {_shown(document.value)}")
            return None
        if self._is_other_kind(document):
            return None
        pipeline = None
        try:
            pipeline = PipelineSpec.model_validate_json(json.dumps(document.value), strict=True)
        except ValidationError as error:
            self._report(document, error, (), PipelineSpec, "the definition")
        spec = document.value.get("spec")
        if isinstance(spec, dict):
            self._check_stages(document, spec)
        return pipeline

    def _is_other_kind(self, document: Document) -> bool:
        """Remember one sentence about a document that is not meant to be a Pipeline in this form."""
        value = document.value
        if value.get("kind") in _LATER_KINDS:
            sentence = f"kind {value['kind']} is not supported yet; write the stage inline in a Pipeline"
            self._at(document, ("kind",), sentence)
            return True
        if "apiVersion" not in value and "kind" not in value and ("sources" in value or "sinks" in value):
            self._at(
                document,
                (),
                f"the bare form is not supported yet; add apiVersion: {API_VERSION} and kind: Pipeline",
            )
            return True
        spec = value.get("spec")
        graph_keys = [key for key in spec if key in GRAPH_KEYS] if isinstance(spec, dict) else []
        if graph_keys:
            sentence = "the graph form is not supported yet; write one inline source, steps and one inline sink"
            self._at(document, ("spec", graph_keys[0]), sentence, key=True)
            return True
        return False

    def _check_stages(self, document: Document, spec: dict[str, Any]) -> None:
        steps = spec.get("steps")
        self._check_stage(document, ("spec", "source"), spec.get("source"), "source")
        for index, step in enumerate(steps if isinstance(steps, list) else ()):
            self._check_stage(document, ("spec", "steps", index), step, "transform")
        self._check_stage(document, ("spec", "sink"), spec.get("sink"), "sink")

    def _check_stage(self, document: Document, path: tuple[str | int, ...], stage: Any, kind: Kind) -> None:
        """Check a stage's options. What the manifest's model reports already is passed over here."""
        if not isinstance(stage, dict) or not isinstance(stage.get("type"), str):
            return
        try:
            operator = self._registry.operator(kind, stage["type"])
        except ConfigError as error:
            self._at(document, (*path, "type"), str(error))
            return
        options = {key: value for key, value in stage.items() if key not in StageSpec.model_fields}
        try:
            validate_options(operator, options)
        except ValidationError as error:
            self._report(document, error, path, operator.Config, f"{kind} {stage['type']}")

    def _report(
        self,
        document: Document,
        error: ValidationError,
        base: tuple[str | int, ...],
        model: type[BaseModel],
        what: str,
    ) -> None:
        sentences: dict[tuple[int, int], list[str]] = {}
        for detail in error.errors(include_url=False):
            path = (*base, *detail["loc"])
            place, known = place_of(document, path)
            value = _value_at(document.value, known)
            # Nothing stands where a null is written by leaving the value out.
            by_key = detail["type"] in ("extra_forbidden", "missing") or value is None
            where = (place.key_line, place.key_column) if by_key else (place.line, place.column)
            name = _name_of(known) if len(known) > len(base) else what
            sentence = _sentence(detail, value, name, _model_at(model, detail["loc"][:-1]))
            if sentence not in sentences.setdefault(where, []):
                sentences[where].append(sentence)
        for (line, column), several in sentences.items():
            # The branches of a union each report the same value; one line says what all of them want.
            for sentence in _joined(several):
                self._text.problem(line, column, sentence)

    def _at(self, document: Document, path: tuple[str | int, ...], message: str, *, key: bool = False) -> None:
        """Remember a problem with the value at `path`, or with its key."""
        place, _ = place_of(document, path)
        line, column = (place.key_line, place.key_column) if key else (place.line, place.column)
        self._text.problem(line, column, message)


def _joined(sentences: list[str]) -> list[str]:
    """`sentences` with those that differ only in what a value must be made into one."""
    wanted: dict[tuple[str, str], list[str]] = {}
    joined = []
    for sentence in sentences:
        match = _MUST_BE.fullmatch(sentence)
        if match is None:
            joined.append(sentence)
        else:
            wanted.setdefault((match["name"], match["got"]), []).append(match["wanted"])
    return joined + [f"{name} must be {' or '.join(choices)}, got {got}" for (name, got), choices in wanted.items()]


def _sentence(detail: ErrorDetails, value: Any, name: str, model: type[BaseModel] | None) -> str:
    """One problem of pydantic's in our words, with the value and a remedy. `name` is the value's."""
    kind, context = detail["type"], detail.get("ctx", {})
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    if kind == "missing":
        return f"the key {key!r} is missing in {name}"
    if kind == "extra_forbidden":
        return _unknown_key(key, model)
    if kind == "literal_error" or kind == "enum":
        return _bad_choice(name, str(context["expected"]), value)
    if kind in _WANTED:
        return f"{name} must be {_WANTED[kind]}, got {_shown(value)}{_quote_hint(_WANTED[kind], value)}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", detail["msg"]))
    message = detail["msg"]
    if message.startswith("Input should be "):
        return f"{name} must be {message.removeprefix('Input should be ')}, got {_shown(value)}"
    return f"{name}: {message[:1].lower()}{message[1:]}, got {_shown(value)}"


def _name_of(path: tuple[str | int, ...]) -> str:
    """What a reader calls the value at `path`: its key, or its number in a list."""
    last = path[-1]
    return repr(last) if isinstance(last, str) else f"item {last + 1} of {_name_of(path[:-1])}"


def _unknown_key(key: str, model: type[BaseModel] | None) -> str:
    if model in (PipelineBody, PipelineSpec) and key in NOT_YET:
        return f"{key!r}: {NOT_YET[key]}"
    known = [] if model is None else [field.alias or name for name, field in model.model_fields.items()]
    close = _close(key, known)
    if close is not None:
        return f"unknown key {key!r}; did you mean {close!r}?"
    return f"unknown key {key!r}" + (f"; the keys here are {', '.join(known)}" if known else "; no keys are known here")


def _bad_choice(name: str, expected: str, value: Any) -> str:
    choices = expected.replace("'", "").replace(" or ", ", ").split(", ")
    sentence = f"{name} must be {' or '.join(choices)}, got {_shown(value)}"
    close = _close(value, choices) if isinstance(value, str) and len(choices) > 1 else None
    return sentence if close is None else f"{sentence}; did you mean {close!r}?"


def _close(word: str, known: list[str]) -> str | None:
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


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return _JSON_WORDS[type(value)]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:60]!r}…"
    return str(value)


def _value_at(value: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def _model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model whose keys stand at `path` below `model`, or None where keys are free."""
    current: Any = model
    for part in path:
        models = [candidate for candidate in _models_in(current) if part in candidate.model_fields]
        if models:
            current = models[0].model_fields[str(part)].annotation
    return next(iter(_models_in(current)), None)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = get_origin(annotation)
    if origin is Annotated or origin in (Union, UnionType, list, tuple, dict, set, frozenset):
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    return []
