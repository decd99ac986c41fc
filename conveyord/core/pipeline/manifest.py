"""Resource manifests as pydantic models: what a YAML document must look like, and nothing of how it is read.

In this version a manifest is one Pipeline in the linear form with its stages written inline. What
later versions will understand is listed in `NOT_YET`, so that it is refused with a sentence that
says so, not as a spelling mistake.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

API_VERSION = "conveyor.etl/v1"
NAME_CHARS_MAX = 128  # names become table properties, file names and metric labels
STEPS_MAX = 64  # every step is a task and a channel; more is a generated file gone wrong

NOT_YET = {
    "dlq": "dead letters are not supported yet; a bad record stops the run, or use --skip-bad",
    "tests": "pipeline tests are not supported yet; remove the key",
    "schema": "schema contracts are not supported yet; new fields and widening always evolve",
    "service": "external services are not supported yet; they need the sidecar",
    "grpc": "external services are not supported yet; they need the sidecar",
}
"""Keys of `spec` that a later version will take, and what to tell who writes them now."""

GRAPH_KEYS = ("sources", "transforms", "sinks", "edges")
"""Keys of `spec` in the graph form, which a later version will take."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def _check_name(name: str) -> str:
    if len(name) > NAME_CHARS_MAX:
        raise ValueError(f"a name has at most {NAME_CHARS_MAX} characters, this one has {len(name)}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name: {name!r}; use letters, digits, '.', '_' and '-', a letter or digit at both ends")
    return name


Name = Annotated[str, AfterValidator(_check_name)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metadata(_Model):
    """A resource's name and what people attach to it. Labels select; annotations only inform."""

    name: Name
    namespace: Name = "default"
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


def _refuse_reference(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"naming a resource ({value!r}) is not supported yet; write the stage inline, with its type")
    return value


class StageSpec(BaseModel):
    """One stage, written inline. The keys beyond `type` and `name` belong to the operator: `options`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    name: Name = ""  # `PipelineBody` gives every stage a name

    @property
    def options(self) -> dict[str, Any]:
        """The operator's own keys, as written. The registry validates them against the operator's model."""
        return dict(self.model_extra or {})


InlineStage = Annotated[StageSpec, BeforeValidator(_refuse_reference)]


def _refuse_blocks(mode: object) -> object:
    if mode == "blocks":
        raise ValueError("mode blocks is not supported yet; it needs a cluster. Use stream or batch")
    return mode


class PipelineBody(_Model):
    """The `spec` of a linear pipeline.

    A stage without a name is called `source`, `sink`, or a step by its type (the second of a type
    `<type>-2`). A source's name is stored in fences, so these defaults are part of the interface.
    """

    mode: Annotated[Literal["stream", "batch"], BeforeValidator(_refuse_blocks)] = "stream"
    source: InlineStage
    steps: tuple[InlineStage, ...] = Field(default=(), max_length=STEPS_MAX)
    sink: InlineStage

    @model_validator(mode="after")
    def _name_stages(self) -> PipelineBody:
        taken = {stage.name for stage in (self.source, *self.steps, self.sink) if stage.name}
        if len(taken) < sum(1 for stage in (self.source, *self.steps, self.sink) if stage.name):
            names = [stage.name for stage in (self.source, *self.steps, self.sink) if stage.name]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two stages are named {twice!r}; positions and counts are kept by name")
        named = {
            "source": _named(self.source, "source", taken),
            "steps": tuple(_named(step, step.type, taken) for step in self.steps),
            "sink": _named(self.sink, "sink", taken),
        }
        # The model is frozen for everyone else; this validator is still part of its construction.
        self.__dict__.update(named)
        return self


def _named(stage: StageSpec, base: str, taken: set[str]) -> StageSpec:
    """`stage` with a name, which is added to `taken`."""
    if stage.name:
        return stage
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name)
    return stage.model_copy(update={"name": name})


class PipelineSpec(_Model):
    """One Pipeline resource, complete and checked as far as a manifest can be without its operators."""

    apiVersion: Literal["conveyor.etl/v1"]  # noqa: N815 - the key's name in the file
    kind: Literal["Pipeline"]
    metadata: Metadata
    spec: PipelineBody

    @property
    def identity(self) -> str:
        """`namespace/name`: what fences, runs and dead letters are kept under."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def source(self) -> StageSpec:
        return self.spec.source

    @property
    def steps(self) -> tuple[StageSpec, ...]:
        return self.spec.steps

    @property
    def sink(self) -> StageSpec:
        return self.spec.sink
