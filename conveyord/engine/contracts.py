"""The three operator contracts, and what an operator is given to work with.

An operator is a class with a declared pydantic `Config` and one async `run` over bounded channels.
The engine owns threads, channels, cancellation and acknowledgement; an operator owns its records.
Operators are found through the entry-point group `conveyord.operators` under `<kind>.<type>`.

Rules that hold for every operator:

- Send on what you were given and return; never close a channel, never send `Eos`: the engine does.
- Blocking or CPU-bound work goes through `context.in_thread`, so that cancellation waits for it and
  the number of threads stays bounded.
- Raise a `ConveyordError` for what a user can mend. Anything else is reported as a bug.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import pyarrow as pa
import trio
from pydantic import BaseModel, ConfigDict

from conveyord.core.errors import BatchError
from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.messages import Batch, Eos, Message, Watermark

T = TypeVar("T")

Delivery = Literal["exactly-once", "at-least-once"]


class OperatorConfig(BaseModel):
    """Base of every operator's configuration: unknown keys are refused, values are never coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)


@dataclass(frozen=True, slots=True)
class OperatorContext:
    """What surrounds an operator in one run."""

    pipeline: str
    """`namespace/name`: the identity under which fences are stored."""
    stage: str
    """The stage's name within the pipeline; a source's positions are stored under it."""
    data_dir: Path
    threads: trio.CapacityLimiter
    skip_bad: bool = False
    """Pass over bad records, counted and logged, instead of stopping at the first."""
    catalogs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Iceberg catalogs by name, as configured in conveyord.toml. `lake` is always the embedded one."""
    provenance: bool = False
    """A sink asks for `_source`, `_partition` and `_offset` on every row; the source adds them."""
    adopt_from: str | None = None
    """A former `namespace/name` of this pipeline, whose fences are to be taken over."""

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run blocking `work` in a thread of this run's pool. Not cancellable before it returns."""
        return cast(T, await trio.to_thread.run_sync(work, *args, limiter=self.threads))


class Outlet(Protocol):
    """Where a source puts what it has read. Waits while the pipeline is full."""

    def expects(self, raw_bytes: int | None) -> None:
        """Say how much there is to read in all, if that is known, for the display."""

    async def send(
        self,
        data: pa.RecordBatch,
        spans: tuple[Span, ...],
        tally: Tally,
        *,
        raw_bytes: int,
        states: Mapping[str, str] | None = None,
    ) -> None:
        """Hand over one batch. Spans of a partition must follow each other without a gap.

        states: what this source wants back with the positions at the end of `spans`.
        """

    async def watermark(self, watermark: Watermark) -> None: ...


class Operator(ABC):
    """What the three kinds have in common."""

    Config: ClassVar[type[OperatorConfig]]

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        self.config: Any = config
        self.context = context


class Source(Operator):
    """Reads records, in order within each partition, from given positions on."""

    @abstractmethod
    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """Read until the end, or until `drain` is set, then return.

        fences: the positions that each downstream sink already holds (one sink, one element). Start
        at the lowest, and end a batch exactly at every position named by any of them, so that what a
        sink already has can be dropped in whole batches.
        Raises RecordError at a bad record, after everything before it has been sent.
        """


class Transform(Operator):
    """Turns messages into messages. Positions, tally and ack of a batch must travel on with it."""

    pure: ClassVar[bool] = False
    """The output depends on the input batch and the configuration alone, so the stage may be shared."""

    @abstractmethod
    async def run(self, inbound: trio.MemoryReceiveChannel[Message], outbound: trio.MemorySendChannel[Message]) -> None:
        """Consume `inbound` up to its `Eos`, flush, and return."""


class BatchTransform(Transform):
    """A transform that maps one batch to one batch, computed in a thread."""

    @abstractmethod
    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Transform one batch. Blocking, called from one thread at a time, no side effects."""

    async def run(self, inbound: trio.MemoryReceiveChannel[Message], outbound: trio.MemorySendChannel[Message]) -> None:
        async for message in inbound:
            match message:
                case Batch():
                    try:
                        data = await self.context.in_thread(self.apply, message.data)
                    except BatchError as error:
                        raise BatchError(f"{_place(message)}: {error}") from error
                    await outbound.send(message.with_data(data))
                case Watermark():
                    await outbound.send(message)
                case Eos():
                    return


def _place(batch: Batch) -> str:
    """Where the records of a batch stand, for a message."""
    spans = [f"{span.partition.name} bytes {span.first} to {span.end}" for span in batch.spans]
    return ", ".join(spans[:3]) + (", ..." if len(spans) > 3 else "")


@dataclass(frozen=True, slots=True)
class SinkReport:
    """What a sink wrote in this run, for the summary."""

    name: str
    rows: int
    files: int
    commits: int


class Sink(Operator):
    """Writes rows and settles the acknowledgement of every batch once it is durable."""

    delivery: ClassVar[Delivery]

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self.taken = Tally()
        """The accounting of every batch taken so far: a sink adds each batch's tally as it takes it."""

    @abstractmethod
    async def open(self) -> Positions:
        """Connect, check that writing is allowed, and return the positions this sink already holds."""

    @abstractmethod
    async def run(self, inbound: trio.MemoryReceiveChannel[Message]) -> None:
        """Consume `inbound` up to its `Eos`, then make everything durable before returning."""

    @abstractmethod
    def report(self) -> SinkReport: ...
