"""Sink `json_file`: rows as JSON lines in one file, which holds those of the last run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import orjson
import pyarrow as pa
from pydantic import Field

from conveyord.core.errors import ConfigError
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Sink, SinkReport
from conveyord.engine.failures import storage_errors
from conveyord.engine.messages import Batch, Eos


class JsonFileConfig(OperatorConfig):
    """Writes rows to a file, one JSON object a line. Each run writes the file anew."""

    path: str = Field(min_length=1, description="The file, relative to the working directory.", examples=["rows.jsonl"])


class JsonFileSink(Sink):
    """Keeps no position: every run starts from the beginning, and a run that is repeated writes its rows again.

    A sink that wants exactly-once stores positions and rows in one step that happens whole or not at all, and gives
    the positions back from `open`. conveyord/operators/sink_iceberg.py does that.
    """

    Config = JsonFileConfig
    delivery = "at-least-once"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._path = Path(self.config.path)
        self._rows = 0

    async def open(self) -> None:
        """See `Sink.open`. Says early what is wrong, and changes nothing: a dry run opens sinks too."""
        if not await self.context.in_thread(self._path.parent.is_dir):
            raise ConfigError(f"stage {self.context.stage!r}: there is no folder {self._path.parent}; make it")

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        with storage_errors(str(self._path)):  # a full disk becomes a sentence, not a traceback
            file = await self.context.in_thread(self._path.open, "wb")
        try:
            async for message in inbound:
                match message:
                    case Batch():
                        with storage_errors(str(self._path)):
                            await self.context.in_thread(self._write, file, message.data)
                        # First durable, then settled: after this no source will send these records again.
                        self.taken += message.tally
                        message.ack.settle()
                    case Eos():
                        return
        finally:
            file.close()

    def _write(self, file: IO[bytes], data: pa.RecordBatch) -> None:
        """Write and sync the rows of one batch. Blocking."""
        for row in data.to_pylist():
            file.write(orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE))  # NaN becomes null
        file.flush()
        os.fsync(file.fileno())
        self._rows += data.num_rows

    def report(self) -> SinkReport:
        """See `Sink.report`."""
        return SinkReport(self.context.stage, rows=self._rows, files=1 if self._rows else 0, commits=0)
