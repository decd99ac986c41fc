"""Resource manifests as pydantic models: what a YAML document must look like, and nothing of how it is read.

A document is a `Manifest`: a Source, Transform, Sink or Pipeline resource, or a bare pipeline. What
later versions will understand is listed in `NOT_YET`, so that it is refused with a sentence that
says so, not as a spelling mistake.

An alias of a key is declared with `AliasChoices`; the first choice is the canonical key, which messages
and the JSON Schema use.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticKnownError

from conveyord.core.pipeline.graph import RETRIES_MAX, RETRY, Mode, OnSlow, SchemaContract, SchemaPolicy, TablePolicy
from conveyord.core.pipeline.stages import Name, ResourceSpec, StageEntry, StageSpec
from conveyord.core.retry import Backoff

API_VERSION = "conveyor.etl/v1"
STAGES_MAX = 256  # every stage is a task and a channel; more is a generated file gone wrong
STEPS_MAX = 64  # in a line each stage adds to the delay; more is a generated file gone wrong
EDGES_MAX = 1024  # four for each of STAGES_MAX stages
TESTS_MAX = 256  # of one pipeline; each is a run of it
RETRIES_LIMIT = 100  # with the longest wait allowed, a batch is held for about four days
DELAY_MS_MAX = 3_600_000  # an hour: a batch that waits longer had better be a dead letter

NOT_YET = {
    "service": "external services are not supported yet; they need the sidecar",
    "grpc": "external services are not supported yet; they need the sidecar",
    "stages": "the stage dialect (etl.dev/v1) is not supported yet; write sources, transforms, sinks and edges",
    "topic_mapping": "topics are mapped by a kafka source; write it there, or a sink for each table",
}
"""Keys that a later version will take, or that stand in the wrong place, and what to tell who writes them now."""

LATER_KINDS = ("Backup", "Restore")
"""Kinds of one of the dialects that a later version will take."""

LINEAR_KEYS = ("source", "steps", "sink")
GRAPH_KEYS = ("sources", "transforms", "sinks", "edges")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metadata(_Model):
    """A resource's name and what people attach to it. Labels select; annotations only inform."""

    name: Name
    namespace: Name = "default"
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class RetryPolicy(_Model):
    """The waits between attempts: each is drawn between nothing and a limit, which grows by `multiplier`."""

    type: Literal["exponentialBackoff"] = "exponentialBackoff"
    initialDelayMs: int = Field(  # noqa: N815 - the key's name in the file
        default=round(RETRY.base_seconds * 1000),
        ge=1,
        le=DELAY_MS_MAX,
        validation_alias=AliasChoices("initialDelayMs", "initial_delay_ms"),
        description="The longest first wait, in milliseconds.",
    )
    maxDelayMs: int = Field(  # noqa: N815 - the key's name in the file
        default=round(RETRY.cap_seconds * 1000),
        ge=1,
        le=DELAY_MS_MAX,
        validation_alias=AliasChoices("maxDelayMs", "max_delay_ms"),
        description="The longest wait of all, in milliseconds.",
    )
    multiplier: float = Field(default=RETRY.multiplier, ge=1, le=100)

    @model_validator(mode="after")
    def _in_order(self) -> RetryPolicy:
        _check_delays(self.initialDelayMs, self.maxDelayMs, names=("initialDelayMs", "maxDelayMs"))
        return self


def _check_delays(initial_ms: int, max_ms: int, *, names: tuple[str, str]) -> None:
    if max_ms < initial_ms:
        raise ValueError(f"{names[1]} ({max_ms}) is shorter than {names[0]} ({initial_ms}); give both")


class DeadLetterSpec(_Model):
    """What happens to records that fail for ever. Without it, a pipeline stops at the first."""

    sink: StageEntry | None = Field(
        default=None, description="The sink that receives copies: of this pipeline, without edges, or a Sink resource."
    )
    maxRetries: int = Field(  # noqa: N815 - the key's name in the file
        default=RETRIES_MAX,
        ge=0,
        le=RETRIES_LIMIT,
        validation_alias=AliasChoices("maxRetries", "max_retries"),
        description="Attempts after the first, for failures that may pass.",
    )
    retryPolicy: RetryPolicy | None = Field(  # noqa: N815 - the key's name in the file
        default=None, validation_alias=AliasChoices("retryPolicy", "retry_policy")
    )
    retryBackoffMs: int | None = Field(  # noqa: N815 - the key's name in the file
        default=None,
        ge=1,
        le=DELAY_MS_MAX,
        validation_alias=AliasChoices("retryBackoffMs", "retry_backoff_ms"),
        description="Another way to write `retryPolicy.initialDelayMs`.",
    )
    maxRetryBackoffMs: int | None = Field(  # noqa: N815 - the key's name in the file
        default=None,
        ge=1,
        le=DELAY_MS_MAX,
        validation_alias=AliasChoices("maxRetryBackoffMs", "max_retry_backoff_ms"),
        description="Another way to write `retryPolicy.maxDelayMs`.",
    )

    @model_validator(mode="after")
    def _one_policy(self) -> DeadLetterSpec:
        if self.retryPolicy is None:
            initial, longest = self._delays_ms()
            _check_delays(initial, longest, names=("retryBackoffMs", "maxRetryBackoffMs"))
        elif self.retryBackoffMs is not None or self.maxRetryBackoffMs is not None:
            raise ValueError("retryPolicy and retryBackoffMs both say how long to wait; give one of them")
        return self

    def _delays_ms(self) -> tuple[int, int]:
        usual = RetryPolicy()
        initial = usual.initialDelayMs if self.retryBackoffMs is None else self.retryBackoffMs
        return initial, usual.maxDelayMs if self.maxRetryBackoffMs is None else self.maxRetryBackoffMs

    @property
    def backoff(self) -> Backoff:
        """The waits, whichever way they were written."""
        if self.retryPolicy is None:
            initial, longest = self._delays_ms()
            return Backoff(base_seconds=initial / 1000, cap_seconds=longest / 1000, multiplier=RETRY.multiplier)
        policy = self.retryPolicy
        return Backoff(
            base_seconds=policy.initialDelayMs / 1000,
            cap_seconds=policy.maxDelayMs / 1000,
            multiplier=policy.multiplier,
        )


class SchemaSpec(_Model):
    """What happens with what a sink's table has no place for. Everything evolves unless it says otherwise."""

    tables: TablePolicy = Field(
        default="evolve", description="A missing table: `evolve` creates it, `freeze` stops the run."
    )
    columns: SchemaPolicy = Field(
        default="evolve",
        description="A field that the table lacks, at any depth: `evolve` adds it, `freeze` and `discard_row` make the "
        "row a dead letter, `discard_value` leaves the value out and counts it.",
    )
    types: SchemaPolicy = Field(
        default="evolve",
        description="A value that does not fit its column: `evolve` widens the column, or adds one beside it that is "
        "named after the value's type; the others as for columns.",
    )

    @property
    def contract(self) -> SchemaContract:
        """The same for the engine."""
        return SchemaContract(self.tables, self.columns, self.types)


Rows = list[dict[str, Any]]


class PipelineTestSpec(_Model):
    """Rows given at stages, and rows expected at stages or their outputs (`stage.output`)."""

    name: str = Field(min_length=1, max_length=200)
    given: dict[str, Rows] = Field(min_length=1)
    expect: dict[str, Rows] = Field(min_length=1)


class EdgeSpec(_Model):
    """Rows of one stage, or of one of its extra outputs (`stage.output`), go to another."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    when: str | None = Field(default=None, min_length=1, description="A SQL condition on one row.")
    otherwise: bool = Field(default=False, description="Only rows that no conditional edge of the output takes.")
    on_slow: OnSlow = Field(
        default="block",
        validation_alias=AliasChoices("on_slow", "onSlow"),
        description="While the target does not keep up: `block` slows the source down, `spill` uses the disk.",
    )

    @model_validator(mode="after")
    def _one_condition(self) -> EdgeSpec:
        if self.when is not None and self.otherwise:
            raise ValueError("an edge has either 'when' or 'otherwise'")
        return self


def _edge_tag(value: object) -> str:
    return "pair" if isinstance(value, list | tuple) else "mapping"


EdgeEntry = Annotated[
    Annotated[tuple[str, str], Tag("pair")] | Annotated[EdgeSpec, Tag("mapping")],
    Discriminator(_edge_tag),
]
"""An edge: `[from, to]`, or a mapping."""


def _refuse_blocks(mode: object) -> object:
    if mode == "blocks":
        raise ValueError("mode blocks is not supported yet; it needs a cluster. Use stream or batch")
    return mode


class PipelineBody(_Model):
    """What the `spec` of every pipeline may say, whatever its form."""

    mode: Annotated[Mode, BeforeValidator(_refuse_blocks)] = Field(
        default="stream", description="`stream` commits as it goes; `batch` reads what there is, and ends."
    )
    enabled: bool = Field(default=True, description="Whether the pipeline runs. It is checked in any case.")
    dlq: DeadLetterSpec | None = None
    schema_: SchemaSpec = Field(default=SchemaSpec(), alias="schema")
    tests: tuple[PipelineTestSpec, ...] = Field(default=(), max_length=TESTS_MAX)


def _may_be_absent(value: Any, info: ValidationInfo) -> Any:
    """Sinks may be left out where a source maps topics to tables, or is a reference to one that may."""
    sources = info.data.get("sources", (info.data.get("source"),))
    if value is None and any(isinstance(one, StageSpec) and one.options.get(MAPPING) is None for one in sources):
        raise PydanticKnownError("missing")
    return value


def _not_null(schema: dict[str, Any]) -> None:
    """A schema of something that may be left out, but is something where it is given."""
    schema.update(schema.pop("anyOf")[0])
    schema.pop("default", None)


MAPPING = "topic_mapping"
"""The option of a source that writes to tables by itself: its pipeline has no other stages."""

_MAPPED: dict[str, Any] = {"anyOf": [{"type": "string"}, {"required": [MAPPING]}]}


class LinearBody(PipelineBody):
    """A pipeline in a line: a source, steps, a sink. The source alone, if it maps topics to tables."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["sink"]}, {"properties": {"source": _MAPPED}}]}
    )

    source: StageEntry
    steps: tuple[StageEntry, ...] = Field(default=(), max_length=STEPS_MAX)
    sink: Annotated[StageEntry | None, AfterValidator(_may_be_absent)] = Field(
        default=None, validate_default=True, json_schema_extra=_not_null
    )


class GraphBody(PipelineBody):
    """A pipeline as a graph. Without `edges`, one source, the transforms and one sink form a line.

    The sources alone, if they map topics to tables.
    """

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["sinks"]}, {"properties": {"sources": {"items": _MAPPED}}}]}
    )

    sources: tuple[StageEntry, ...] = Field(min_length=1, max_length=STAGES_MAX)
    transforms: tuple[StageEntry, ...] = Field(default=(), max_length=STAGES_MAX)
    sinks: Annotated[
        Annotated[tuple[StageEntry, ...], Field(min_length=1, max_length=STAGES_MAX)] | None,
        AfterValidator(_may_be_absent),
    ] = Field(default=None, validate_default=True, json_schema_extra=_not_null)
    edges: tuple[EdgeEntry, ...] | None = Field(default=None, max_length=EDGES_MAX)

    @model_validator(mode="after")
    def _few_enough(self) -> GraphBody:
        count = len(self.sources) + len(self.transforms) + len(self.sinks or ())
        if count > STAGES_MAX:
            raise ValueError(f"a pipeline has at most {STAGES_MAX} stages, this one has {count}; split it")
        return self


def body_form(spec: object) -> str:
    """`graph` or `linear`: which form the `spec` of a pipeline is meant to have."""
    has_graph = isinstance(spec, GraphBody) or (isinstance(spec, dict) and any(key in spec for key in GRAPH_KEYS))
    return "graph" if has_graph else "linear"


class SourceManifest(_Model):
    """A source that pipelines name."""

    apiVersion: Literal["conveyor.etl/v1"]  # noqa: N815 - the key's name in the file
    kind: Literal["Source"]
    metadata: Metadata
    spec: ResourceSpec


class TransformManifest(_Model):
    """A transform that pipelines name."""

    apiVersion: Literal["conveyor.etl/v1"]  # noqa: N815 - the key's name in the file
    kind: Literal["Transform"]
    metadata: Metadata
    spec: ResourceSpec


class SinkManifest(_Model):
    """A sink that pipelines name."""

    apiVersion: Literal["conveyor.etl/v1"]  # noqa: N815 - the key's name in the file
    kind: Literal["Sink"]
    metadata: Metadata
    spec: ResourceSpec


class PipelineManifest(_Model):
    """A pipeline, in either form."""

    apiVersion: Literal["conveyor.etl/v1"]  # noqa: N815 - the key's name in the file
    kind: Literal["Pipeline"]
    metadata: Metadata
    spec: Annotated[Annotated[LinearBody, Tag("linear")] | Annotated[GraphBody, Tag("graph")], Discriminator(body_form)]


class BarePipeline(GraphBody):
    """A file that is one pipeline in the graph form, without `apiVersion`, `kind` and `metadata`."""

    name: Name


def manifest_kind(document: object) -> str:
    """`Source`, `Transform`, `Sink`, `Pipeline` or `bare`: which model a document is meant for."""
    if isinstance(document, BaseModel):
        return "bare" if isinstance(document, BarePipeline) else str(getattr(document, "kind", "Pipeline"))
    if not isinstance(document, dict):
        return "Pipeline"
    if "kind" not in document and "apiVersion" not in document and body_form(document) == "graph":
        return "bare"
    kind = document.get("kind")
    return kind if isinstance(kind, str) and kind in MODELS else "Pipeline"


MODELS: dict[str, type[BaseModel]] = {
    "Source": SourceManifest,
    "Transform": TransformManifest,
    "Sink": SinkManifest,
    "Pipeline": PipelineManifest,
    "bare": BarePipeline,
}
"""The model of each `manifest_kind`."""

Manifest = Annotated[
    Annotated[SourceManifest, Tag("Source")]
    | Annotated[TransformManifest, Tag("Transform")]
    | Annotated[SinkManifest, Tag("Sink")]
    | Annotated[PipelineManifest, Tag("Pipeline")]
    | Annotated[BarePipeline, Tag("bare")],
    Discriminator(manifest_kind),
]
"""Any document. `TypeAdapter(Manifest).json_schema()` describes it, without the operators' own keys."""
