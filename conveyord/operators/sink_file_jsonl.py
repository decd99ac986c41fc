"""Sink `file_jsonl`: rows as JSON lines in files, exactly once.

How that holds is told in `storage/jsonl_files.py`, how values are written in `engine/json_lines.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import Field

from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes
from conveyord.engine.committing import CommitPolicy, CommittingSink, finish
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, SinkReport
from conveyord.engine.failures import storage_errors
from conveyord.engine.json_lines import json_lines
from conveyord.engine.messages import Batch
from conveyord.engine.poison import Salvaged
from conveyord.engine.schema.merge import fields_by_name
from conveyord.storage.jsonl_files import SUFFIXES, Compression, JsonlFiles, JsonlOptions

log = structlog.get_logger(__name__)

ROWS_AT_A_TIME = 8_192  # rendered together: some megabytes of text
FILE_SUFFIXES = (".jsonl", ".ndjson", ".json")


class JsonlFilePolicy(OperatorConfig):
    """When a file of a directory is full: at whichever comes first."""

    rows: int | None = Field(default=None, ge=1, description="Rows in one file, at most. None: no limit.")
    bytes: Bytes = Field(
        default=128 * 1024 * 1024, ge=1024, description="Another file is begun when this much is written to one."
    )


class FileJsonlConfig(OperatorConfig):
    """Writes rows as JSON lines, exactly once: a crash leaves no line twice, and none that is torn.

    Every column stands in every line, null if it has no value. Whole numbers are written in full; decimals and
    timestamps (ISO 8601) are strings, bytes are base64, NaN and the infinities are null and counted in the log.
    Lines are appended as rows come and kept by a commit: a reader that follows a file while a run goes on may see
    lines that a crash takes back, to come again. `_conveyord` beside the files keeps the positions. A run stops at a
    file that others appended to or replaced. The file system must have hard links.
    """

    path: str = Field(
        min_length=1,
        description="One file if it ends in `.jsonl`, `.ndjson` or `.json` (or these with `.gz` or `.zst`), else a "
        "directory of files, made if missing; relative to the working directory. A file that another program "
        "made is refused.",
        examples=["out/rows"],
    )
    compression: Literal["none", "gzip", "zstd"] | None = Field(
        default=None, description="None: as the ending of `path` says."
    )
    file: JsonlFilePolicy = Field(default_factory=JsonlFilePolicy)
    commit: CommitPolicy = Field(default_factory=CommitPolicy)

    @property
    def implied(self) -> Compression:
        """The compression that the ending of `path` says."""
        ending = Path(self.path).suffix.lower()
        return next((name for name, suffix in SUFFIXES.items() if suffix and suffix == ending), "none")

    @property
    def is_single(self) -> bool:
        """Whether `path` names one file."""
        stem = Path(self.path).name.lower()
        stem = stem.removesuffix(SUFFIXES[self.implied])
        return stem.endswith(FILE_SUFFIXES) and not self.path.endswith("/")


class FileJsonlSink(CommittingSink):
    """See docs/operators.md."""

    Config = FileJsonlConfig
    delivery = "exactly-once"

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, FileJsonlConfig)
        if "://" in config.path:
            return {"path": f"{config.path!r} is no local path; file_jsonl writes to local file systems only"}
        if not config.is_single:
            return {}
        if "file" in config.model_fields_set:
            return {"file": f"path {config.path!r} is one file, never full; name a directory, or leave this out"}
        if config.compression not in {None, config.implied}:
            return {"compression": f"the ending of {config.path!r} says {config.implied}; leave this out"}
        return {}

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        chosen: FileJsonlConfig = self.config
        options = JsonlOptions(
            path=Path(chosen.path).absolute(),
            single=chosen.is_single,
            pipeline=context.pipeline,
            compression=chosen.compression or chosen.implied,
            file_bytes=chosen.file.bytes,
            file_rows_max=chosen.file.rows,
            adopt_from=context.adopt_from,
        )
        self._files = JsonlFiles(options)
        self._no_numbers = 0

    async def open(self) -> Positions:
        """See `Sink.open`. Raises Refused if a file there is another program's, or another run writes there."""
        with storage_errors(self.what):
            held = await self.context.in_thread(self._files.open)
        self.took_over = self._files.took_over
        return held

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        await super().run(inbound)
        if self._no_numbers:
            log.warning("JSON has no NaN and no infinity: they became null", sink=self.what, values=self._no_numbers)

    async def close(self) -> None:
        """See `Operator.close`. What was not committed is taken back; what cannot be is by the next run."""
        await finish(self._files.abort, self._files.close)

    @property
    def what(self) -> str:
        """See `CommittingSink.what`."""
        return f"{'file' if self.config.is_single else 'directory'} {self.config.path}"

    @property
    def destination(self) -> str:
        """See `Sink.destination`."""
        return f"path {Path(self.config.path).resolve()}"

    def write(self, batch: Batch) -> Salvaged[Any]:
        """See `CommittingSink.write`."""
        rows = batch.data
        fields_by_name(rows.schema)  # an object has each key once
        first = 0
        while first < rows.num_rows:
            left = self._files.rows_left
            part = rows.slice(first, ROWS_AT_A_TIME if left is None else min(ROWS_AT_A_TIME, left))
            lines = json_lines(part)
            self._files.write(lines.text, part.num_rows)
            self._no_numbers += lines.no_numbers
            first += part.num_rows
        return Salvaged()

    @property
    def bytes_staged(self) -> int:
        """See `CommittingSink.bytes_staged`."""
        return self._files.bytes_staged

    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> bool:
        """See `CommittingSink.commit`."""
        self._files.commit(spans, tally, states)
        return True

    def report(self) -> SinkReport:
        """See `Sink.report`. Rows count once they are committed."""
        written = self._files
        return SinkReport(self.context.stage, written.rows_committed, written.files_committed, written.commits)
