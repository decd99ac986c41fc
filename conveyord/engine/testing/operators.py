"""The operators at both ends of a test: a source of given rows, and a sink that keeps what arrives.

They are found by `with_test_ends` alone, so that no definition can name them.
"""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import Any

import pyarrow as pa
import trio
from pydantic import Field

from conveyord.core.errors import ConfigError
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.trial import COLLECTED, GIVEN
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Outlet, Sink, SinkReport, Source
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.messages import Batch, Eos
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.registry import GROUP, Registry

PARTITION = "rows of the test"


class GivenConfig(OperatorConfig):
    """The rows to emit, as JSON objects."""

    rows: tuple[dict[str, Any], ...] = Field(default=())


class GivenRows(Source):
    """Emits its rows as one batch, typed as `file_jsonl` types records; nothing at all if there are none."""

    Config = GivenConfig
    unit = "rows"

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:  # noqa: ARG002
        """See `Source.run`. There is nothing to go on from. Raises ConfigError for a row that cannot be a record."""
        lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in self.config.rows]
        if not lines:
            return
        partition = Partition(self.context.stage, PARTITION)
        data = await self.context.in_thread(_decoded, lines)
        await out.send(
            data,
            (Span(partition, 0, len(lines)),),
            Tally(read=len(lines)),
            raw_bytes=0,
            place_of=lambda row: Place(RecordRef(partition, row, lines[row])),
        )


def _decoded(lines: list[bytes]) -> pa.RecordBatch:
    decoder, block = JsonLinesDecoder(), b"".join(line + b"\n" for line in lines)
    decoded = decoder.decode(block, decoder.infer(block, None), None)
    if decoded.bad:
        bad = decoded.bad[0]
        number = block.count(b"\n", 0, bad.offset) + 1
        raise ConfigError(f"given row {number} cannot be a record: {bad.reason}")
    return decoded.data


class CollectedConfig(OperatorConfig):
    """There is nothing to configure."""


class CollectedRows(Sink):
    """Keeps every batch, with the name of the source that it came from."""

    Config = CollectedConfig
    delivery = "at-least-once"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self.batches: list[tuple[str, pa.RecordBatch]] = []

    async def open(self) -> None:
        """See `Sink.open`. Nothing is held from earlier runs."""

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        async for message in inbound:
            match message:
                case Batch():
                    self.batches.append((message.spans[0].partition.source, message.data))
                    self.taken += message.tally
                    message.ack.settle()
                case Eos():
                    return

    def report(self) -> SinkReport:
        """See `Sink.report`."""
        return SinkReport(name=self.context.stage, rows=self.taken.rows, files=0, commits=0)


def with_test_ends(registry: Registry) -> Registry:
    """`registry`, and the two operators of this file."""
    ends = {f"source.{GIVEN}": GivenRows, f"sink.{COLLECTED}": CollectedRows}
    points = {name: (EntryPoint(name, f"{end.__module__}:{end.__name__}", GROUP),) for name, end in ends.items()}
    return Registry({**registry.by_name, **points})
