"""Turns documents into named resources, and finds them by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from conveyord.core.pipeline.checks import listed
from conveyord.core.pipeline.graph import StageKind
from conveyord.core.pipeline.manifest import (
    API_VERSION,
    LATER_KINDS,
    MODELS,
    NOT_YET,
    BarePipeline,
    Metadata,
    manifest_kind,
)
from conveyord.core.pipeline.stages import ResourceSpec, nested_in_config
from conveyord.engine.definitions.operators import OperatorChecks
from conveyord.engine.definitions.sentences import close_to, shown_value
from conveyord.engine.definitions.written import Written
from conveyord.engine.yaml_source import Path

KIND_OF: Final[dict[StageKind, str]] = {"source": "Source", "transform": "Transform", "sink": "Sink"}
SUGGESTIONS_MAX = 100  # for misspelt references; each looks at all names, and nobody reads more
STAGE_KIND: Final[dict[str, StageKind]] = {kind: stage for stage, kind in KIND_OF.items()}


@dataclass(frozen=True, slots=True)
class Resource:
    """One named document. kind: Source, Transform, Sink or Pipeline. base: the path of its `spec`.

    model: None if the document is not valid, which has been reported. type and options: of what is no
    Pipeline, with canonical keys.
    """

    kind: str
    namespace: str
    name: str
    written: Written
    base: Path
    model: BaseModel | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    type: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def place(self) -> str:
        """`file:line` of its name."""
        return self.written.place(("name",) if self.base == () else ("metadata", "name"))


def read_resource(written: Written, operators: OperatorChecks) -> Resource | None:
    """The resource of one document, or None if it has no usable name. Problems are remembered."""
    value = written.value
    if not isinstance(value, dict):
        written.at((), f"a definition is a mapping, got {shown_value(value)}")
        return None
    if _refused(written, value):
        return None
    kind = manifest_kind(value)
    if "kind" in value and value["kind"] != kind:
        meant = _wrong_kind(written, value["kind"])
        if meant is None:
            return None
        kind, value = meant, {**value, "kind": meant}
    model = MODELS[kind]
    checked: BaseModel | None = None
    try:
        checked = model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        what = {"bare": "the pipeline", "Pipeline": "the definition"}.get(kind, f"the {kind}")
        written.report(error, (), model, what)
    base: Path = () if kind == "bare" else ("spec",)
    metadata = _metadata(value, checked)
    resource_type = ""
    options: dict[str, Any] = {}
    if kind in STAGE_KIND:
        resource_type, options = _operator_of(written, value.get("spec"), STAGE_KIND[kind], operators)
    if metadata is None:
        return None
    return Resource(
        kind="Pipeline" if kind == "bare" else kind,
        namespace=metadata.namespace,
        name=metadata.name,
        written=written,
        base=base,
        model=checked,
        labels=metadata.labels,
        annotations=metadata.annotations,
        type=resource_type,
        options=options,
    )


def _wrong_kind(written: Written, given: Any) -> str | None:
    """The kind that is probably meant, so that the rest can be checked. The problem is remembered."""
    kinds = [*STAGE_KIND, "Pipeline"]
    close = close_to(given, kinds) if isinstance(given, str) else None
    hint = "" if close is None else f"; did you mean {close!r}?"
    message = f"'kind' must be {', '.join(kinds[:-1])} or {kinds[-1]}, got {shown_value(given)}{hint}"
    written.at(("kind",), message, key=given is None)
    return close


def _metadata(value: dict[str, Any], checked: BaseModel | None) -> Metadata | None:
    """The metadata, also of a document that has other problems: what refers to it is not to be blamed."""
    if isinstance(checked, BarePipeline):
        return Metadata(name=checked.name)
    if checked is not None:
        metadata: Metadata = checked.metadata  # type: ignore[attr-defined]  # every model but the bare one has it
        return metadata
    given = value.get("metadata", {"name": value.get("name")})
    try:
        return Metadata.model_validate(given, strict=True)
    except ValidationError:
        return None


def _operator_of(written: Written, spec: Any, kind: StageKind, operators: OperatorChecks) -> tuple[str, dict[str, Any]]:
    if not isinstance(spec, dict) or not isinstance(spec.get("type"), str):
        return "", {}
    options = {key: value for key, value in spec.items() if key not in ResourceSpec.model_fields}
    base: Path = ("spec",)
    if nested_in_config(options):
        options, base = options["config"], ("spec", "config")
    operators.check(written, kind, spec["type"], options, base=base)
    return spec["type"], operators.canonical(kind, spec["type"], options)


def _refused(written: Written, value: dict[str, Any]) -> bool:
    """Remember one sentence about a document of a dialect that is not understood yet."""
    spec = value.get("spec")
    keys = spec if isinstance(spec, dict) else {}
    kind = str(value.get("kind"))
    if value.get("apiVersion") == "etl.dev/v1" or "stages" in keys:
        path: Path = ("spec", "stages") if "stages" in keys else ("apiVersion",)
        written.at(path, NOT_YET["stages"], key=True)
        return True
    if kind in LATER_KINDS:
        written.at(("kind",), f"kind {kind} is not supported yet; remove the document")
        return True
    if kind in STAGE_KIND:
        external = next((key for key in ("grpc", "service") if key in keys), None)
        if external is not None:
            written.at(("spec", external), f"{external!r}: {NOT_YET[external]}", key=True)
            return True
    if "apiVersion" not in value and "kind" not in value and not ("sources" in value or "sinks" in value):
        known = f"apiVersion: {API_VERSION}, kind, metadata and spec, or a bare pipeline with sources and sinks"
        if not {"metadata", "spec"} & value.keys():
            written.at((), f"this is no definition; it needs {known}")
            return True
    return False


class Resources:
    """The resources of one set by kind, namespace and name. complete: no file of the set was unreadable."""

    def __init__(self, *, complete: bool) -> None:
        self._complete = complete
        self._known: dict[tuple[str, str, str], Resource] = {}
        self._spaces: dict[tuple[str, str], list[str]] = {}
        self._names: dict[tuple[str, str], list[str]] = {}
        self._suggested = 0

    def add(self, resource: Resource) -> bool:
        """Whether it is the first of its name. If not, that is remembered as a problem."""
        key = (resource.kind, resource.namespace, resource.name)
        first = self._known.setdefault(key, resource)
        if first is resource:
            self._spaces.setdefault((resource.kind, resource.name), []).append(resource.namespace)
            self._names.setdefault((resource.kind, resource.namespace), []).append(resource.name)
            return True
        path: Path = ("name",) if resource.base == () else ("metadata", "name")
        resource.written.at(
            path,
            f"{resource.kind} {resource.identity} is defined twice, first in {first.place}; rename one of them, "
            "or put it in another namespace",
        )
        return False

    def find(self, kind: str, reference: str, namespace: str) -> Resource | None:
        """The resource that `reference`, written in `namespace`, names."""
        within, _, name = reference.rpartition("/")
        return self._known.get((kind, within or namespace, name))

    def why_missing(self, kind: str, reference: str, namespace: str, operators: OperatorChecks) -> str | None:
        """A sentence about a reference that `find` does not find. None if an unreadable file may hold it."""
        if not self._complete:
            return None
        within, _, name = reference.rpartition("/")
        within = within or namespace
        for other in STAGE_KIND:
            found = self._known.get((other, within, name))
            if found is not None:
                return f"{reference!r} is a {other} ({found.place}), not a {kind}"
        missing = f"no {kind} is named {name!r} in the namespace {within!r}"
        elsewhere = self._spaces.get((kind, name))
        if elsewhere:
            return f"{missing}; there is one in {elsewhere[0]!r}: write {elsewhere[0]}/{name}"
        names = self._names.get((kind, within), [])
        self._suggested += 1
        close = get_close_matches(name, names, n=1) if self._suggested <= SUGGESTIONS_MAX else []
        if close:
            return f"{missing}; did you mean {close[0]!r}?"
        if operators.is_type(STAGE_KIND[kind], name):
            return f"{missing}; for the operator of that type write {{type: {name}}}"
        if names:
            return f"{missing}; there {listed(names)}"
        return f"{missing}; define it, or load the file that does so too"
