"""The three operator contracts, and what an operator is given to work with.

An operator is a class with a declared pydantic `Config` and one async `run` over bounded channels.
The engine owns threads, channels, cancellation and acknowledgement; an operator owns its records.
Operators are found through the entry-point group `conveyord.operators` under `<kind>.<type>`.

Rules that hold for every operator:

- Send on what you were given and return; never close a channel, never send `Eos`: the engine does.
- A transform sends one batch on for every batch it receives, in order, even if no row is left in it: where
  branches of a graph come together again, the pieces of a batch find each other by that.
- Blocking or CPU-bound work goes through `context.in_thread`, so that cancellation waits for it and
  the number of threads stays bounded.
- Raise a `ConveyordError` for what a user can mend. Anything else is reported as a bug.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import pyarrow as pa
import trio
from pydantic import BaseModel, ConfigDict

from conveyord.core.errors import ConfigError, ConveyordError, Retryable
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import RETRIES_MAX, RETRY, SchemaContract
from conveyord.core.retry import Backoff
from conveyord.engine.health import SourceHealth
from conveyord.engine.messages import Batch, Message, Watermark
from conveyord.engine.origin import Place

T = TypeVar("T")

Delivery = Literal["exactly-once", "at-least-once"]
Inbound = trio.abc.ReceiveChannel[Message]
Mistakes = Mapping[Any, str]
"""Sentences by the key of an option (text), or by the keys and numbers that lead to a value within one (a tuple)."""


class OperatorConfig(BaseModel):
    """Base of every operator's configuration: unknown keys are refused, values are never coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record or row that failed for ever.

    row: as it arrived at the stage; None if it never became one. output: it had left the stage by this output
    already, and a condition of an edge failed; `row` is what the stage made. members: the pipelines for which
    it failed; None for all that share the stage.
    """

    place: Place
    error: ConveyordError
    row: pa.RecordBatch | None = None
    attempts: int = 1
    output: str | None = None
    members: frozenset[str] | None = None


class DeadLetters(Protocol):
    """Where a stage puts what failed for ever."""

    async def put(self, rejected: Sequence[Rejected]) -> None:
        """Store them. Durable on return, so the stage may go on without them.

        Raises StorageFull or Corrupt if they cannot be kept: then the stage must stop.
        """


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and after which waits, a stage tries again what may pass."""

    count_max: int = RETRIES_MAX
    backoff: Backoff = RETRY
    random: Random = field(default_factory=Random)

    async def run(self, work: Callable[[], Awaitable[T]]) -> tuple[T, int]:
        """The result of `work` and how many attempts it took. Raises the last Retryable once they are used up."""
        attempt = 1
        while True:
            try:
                return await work(), attempt
            except Retryable:
                if attempt > self.count_max:
                    raise
                await trio.sleep(self.backoff.delay_seconds(attempt, self.random))
                attempt += 1


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
    listened: frozenset[str] = frozenset()
    """The extra outputs of this stage that an edge leaves from. Rows for the others need not be made."""
    dead_letters: DeadLetters | None = None
    """Where records go that fail for ever. None: the pipeline has no `dlq`, so a stage stops at the first."""
    retries: Retries = field(default_factory=Retries)
    contract: SchemaContract = field(default_factory=SchemaContract)
    """What a sink does with rows that its table has no place for."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What each pipeline that shares this stage calls it."""

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
        place_of: Callable[[int], Place] | None = None,
        within_seconds: float | None = None,
        lost: bool = False,
    ) -> None:
        """Hand over one batch. Spans of a partition must follow each other without a gap.

        states: what this source wants back with the positions at the end of `spans`. place_of: the record
        that a row of `data` is, asked for by dead letters only; blocking. within_seconds: see `Batch`. lost: what
        lies in `spans` was not read, for it is gone, so a dead letter of it is the last that there is of its record.
        """

    def on_settled(self, moved: Callable[[Mapping[Partition, Position]], None]) -> None:
        """Have `moved` called whenever every sink has more of what was sent, with the positions up to which it has.

        Below such a position nothing is missing anywhere, and what lies below may be forgotten. Called in the
        trio thread, also after `run` has returned; it must neither wait nor raise. The last one given counts.
        """

    async def watermark(self, watermark: Watermark) -> None: ...


class Outbound(Protocol):
    """Where a transform sends what it made. Waits while what follows is full."""

    async def send(self, message: Message, extra: Mapping[str, Batch] | None = None) -> None:
        """Send `message` on. extra: beside a batch, what leaves by the other outputs that `context.listened`
        names; each made by `with_data` of the batch that came in.
        """


class Operator(ABC):
    """What the three kinds have in common."""

    Config: ClassVar[type[OperatorConfig]]
    pure: ClassVar[bool] = False
    """What comes out depends on what comes in and the configuration alone (for a source: on the positions
    it starts at), so pipelines that run together may share the stage."""

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        self.config: Any = config
        self.context = context

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:  # noqa: ARG003 - for those who override it
        """What is wrong with options that their types do not tell, such as SQL that does not parse, by key.

        A value within an option has as its key the way there, such as `("columns", "total")`. Asked when a definition
        is checked; reaches for nothing outside.
        """
        return {}

    @classmethod
    def is_pure(cls, config: OperatorConfig) -> bool:  # noqa: ARG003 - for those who override it
        """Whether a stage with `config` is pure, for operators where that depends on it."""
        return cls.pure

    async def check(self) -> None:  # noqa: B027 - most need nothing
        """Reach for everything that `run` will need, and move nothing: what a dry run calls.

        Raises a ConveyordError for what is missing. A sink is opened instead.
        """

    async def close(self) -> None:  # noqa: B027 - likewise
        """Let go of what `open` or `check` took. Called once at the end of every run, whatever happened."""


class Source(Operator):
    """Reads records, in order within each partition, from given positions on."""

    unit: ClassVar[str] = "offsets"
    """What its offsets count, for messages: `bytes`, `rows` or `records`."""
    health: SourceHealth | None = None
    """How it is doing, for sources that others write to; each makes its own. See `SourceHealth`."""

    @abstractmethod
    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """Read until the end, or until `drain` is set, then return.

        fences: the positions that each downstream sink already holds, one element for each. Start
        at the lowest, and end a batch exactly at every position named by any of them, so that what a
        sink already has can be dropped in whole batches. Called again, with where it got to, after it
        raised Retryable.
        Raises RecordError at a bad record, after everything before it has been sent; with
        `context.dead_letters` it puts the record there and goes on.
        """

    def decode(self, raw: bytes, state: str | None) -> pa.RecordBatch:  # noqa: ARG002 - for those who override it
        """The row of one record, given as the bytes that this source put into a dead letter. Blocking.

        state: what the source stored with the newest positions. Raises RecordError if the record is bad,
        ConfigError if the source cannot do that.
        """
        raise ConfigError(
            f"source {self.context.stage!r} cannot read single records, so its dead letters cannot be replayed"
        )


class Transform(Operator):
    """Turns messages into messages. Positions, tally and ack of a batch must travel on with it."""

    outputs: ClassVar[tuple[str, ...]] = ()
    """The names of outputs beside the main one, from which edges may leave as `stage.output`."""

    @classmethod
    def outputs_of(cls, config: OperatorConfig) -> tuple[str, ...]:  # noqa: ARG003 - for those who override it
        """`outputs`, for transforms whose options name them."""
        return cls.outputs

    @abstractmethod
    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        """Consume `inbound` up to its `Eos`, flush, and return."""


@dataclass(frozen=True, slots=True)
class SinkReport:
    """What a sink wrote in this run, for the summary.

    discarded_values: those that the pipeline's schema contract left out of rows, in all columns together.
    """

    name: str
    rows: int
    files: int
    commits: int
    discarded_values: int = 0


class Sink(Operator):
    """Writes rows and settles the acknowledgement of every batch once it is durable."""

    delivery: ClassVar[Delivery]
    keeps_contract: ClassVar[bool] = False
    """It has a table of known columns, and holds rows to `context.contract`."""
    no_copies: ClassVar[str | None] = None
    """Why it cannot be the sink of `dlq`, and what to do about it; None: it can."""

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self.taken = Tally()
        """The accounting of every batch taken so far: a sink adds each batch's tally as it takes it."""
        self.took_over: bool | None = None
        """Whether `open` found positions of `context.adopt_from`, and goes on from them; None: it does not tell."""

    @classmethod
    def delivery_of(cls, config: OperatorConfig) -> Delivery:  # noqa: ARG003 - for those who override it
        """`delivery`, for sinks where the configuration decides."""
        return cls.delivery

    @property
    def destination(self) -> str | None:
        """What no other sink of the same pipeline may write to, because positions are kept there."""
        return None

    def share_of(self, partition: Partition) -> str | None:  # noqa: ARG002 - for those who override it
        """What of `destination` the records of `partition` go to, if that keeps positions of its own; None: all of it.

        Dead letters are kept and replayed for each share by itself, so `partition` may also be one of a replay: see
        `share_of_lane`.
        """
        return None

    @abstractmethod
    async def open(self) -> Positions | None:
        """Connect, check that writing is allowed, and return the positions this sink already holds.

        None if it keeps no positions: then it gets whatever this run reads for the others.
        """

    @abstractmethod
    async def run(self, inbound: Inbound) -> None:
        """Consume `inbound` up to its `Eos`, then make everything durable before returning."""

    @abstractmethod
    def report(self) -> SinkReport: ...
