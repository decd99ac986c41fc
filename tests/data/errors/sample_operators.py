"""Operators with every kind of option, so that messages about options do not change with the real ones."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Field

from conveyord.core.units import Bytes, Seconds
from conveyord.engine.contracts import OperatorConfig, Sink, Source, Transform
from conveyord.engine.secrets import HIDDEN, Secret


class CommitConfig(OperatorConfig):
    rows: int = Field(default=1_000_000, ge=1)
    every: Seconds = 60.0


class SampleSource(Source):
    class Config(OperatorConfig):
        path: str
        compression: Literal["auto", "gzip", "zstd"] = "auto"
        block: Bytes = 1024
        header: bool = True


class SampleTransform(Transform):
    outputs: ClassVar[tuple[str, ...]] = ("dropped",)

    class Config(OperatorConfig):
        when: str
        ratio: float = 1.0


class SampleSink(Sink):
    class Config(OperatorConfig):
        table: str = Field(validation_alias=AliasChoices("table", "table_name"))
        token: Secret | None = None
        catalog: Annotated[str | dict[str, str], HIDDEN] = "lake"
        partition_by: tuple[str, ...] = ()
        commit: CommitConfig | None = None
        target: int | Literal["auto"] = "auto"
        properties: dict[str, str] = Field(default_factory=dict)
