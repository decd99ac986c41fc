"""Transform `rate_limit`: no more rows or bytes a second than allowed."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import trio
from pydantic import ConfigDict, Field, model_validator

from conveyord.core.errors import ConfigError
from conveyord.core.flow.token_bucket import TokenBucket
from conveyord.core.pipeline.graph import MAIN
from conveyord.core.units import Bytes, Seconds
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Outbound, Transform
from conveyord.engine.messages import Batch, Eos
from conveyord.engine.origin import Appended, Selection, Step

DROPPED = "dropped"
TAG = "_rate_limited"


def _with_rows_or_bytes(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema of a definition that `rows_per_second` may be missing beside `bytes_per_second`."""
    schema["required"] = [key for key in schema.get("required", ()) if key != "rows_per_second"]
    schema["anyOf"] = [{"required": [key]} for key in ("rows_per_second", "bytes_per_second")]


class RateLimitConfig(OperatorConfig):
    """Lets so many rows or bytes a second pass, and delays, drops or marks what is more.

    A batch is delayed as a whole, by what its rows cost together: at 100 rows a second a batch of 65,536 rows
    waits for 11 minutes, and comes at once then. For a steady flow give the source a small `batch_rows`. Nothing
    is held back in memory meanwhile: what comes before waits too, up to the source. At the end of a run, Ctrl-C
    included, what is under way is still delayed.

    Every run begins with a full burst. With `drop` and `tag`, which rows are hit depends on the clock: where a
    run was killed, the next may decide otherwise on the records that it reads again.
    """

    model_config = ConfigDict(json_schema_extra=_with_rows_or_bytes)

    rows_per_second: float | None = Field(
        gt=0,
        allow_inf_nan=False,
        examples=[1000.0],
        description="Rows that may pass, on average. May be left out beside `bytes_per_second`: as many as that lets "
        "pass.",
    )
    bytes_per_second: Bytes | None = Field(
        default=None,
        ge=1,
        description="Bytes that may pass, as the rows take them in memory. With both limits, the stricter one counts.",
    )
    burst: Seconds = Field(
        default=1.0,
        gt=0,
        description="What may pass at once after a pause, as the time that it takes to come: at 1,000 rows a second, "
        "`5s` are 5,000 rows.",
    )
    on_excess: Literal["delay", "drop", "tag"] = Field(
        default="delay",
        description="`delay` makes the batch wait. `drop` removes the rows at its end that are too many, counted as "
        "filtered; they leave by the output `dropped` if an edge leads from there. `tag` lets all pass and adds the "
        f"boolean column `{TAG}`. For the last two, a row takes the bytes that the rows of its batch take on average.",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_limit(cls, given: Any) -> Any:
        """One limit is enough."""
        if not isinstance(given, dict):
            return given
        if given.get("rows_per_second") is None and given.get("bytes_per_second") is None:
            raise ValueError("rate_limit needs rows_per_second, bytes_per_second or both")
        return {"rows_per_second": None, **given}


class RateLimitTransform(Transform):
    """See docs/operators.md. Never pure: it has a clock. Needs no thread: it slices, and copies nothing."""

    Config = RateLimitConfig
    outputs = (DROPPED,)

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        rows, size, burst = self.config.rows_per_second, self.config.bytes_per_second, self.config.burst
        self._rows = None if rows is None else TokenBucket(rows, rows * burst)
        self._bytes = None if size is None else TokenBucket(size, size * burst)

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        """See `Transform.run`."""
        async for message in inbound:
            match message:
                case Batch() if self.config.on_excess == "delay":
                    await trio.sleep(self._pay(message.data.num_rows, message.data.nbytes))
                    await outbound.send(message)
                case Batch() if self.config.on_excess == "drop":
                    main, others = self._divided(message)
                    await outbound.send(main, others)
                case Batch():
                    await outbound.send(self._tagged(message))
                case Eos():
                    return
                case _:
                    await outbound.send(message)

    def _pay(self, rows: int, size_bytes: float) -> float:
        """Pay for rows that go on; the seconds that they must wait."""
        now = trio.current_time()
        waits = [0.0]
        if self._rows is not None:
            waits.append(self._rows.pay(rows, now_seconds=now))
        if self._bytes is not None:
            waits.append(self._bytes.pay(size_bytes, now_seconds=now))
        return max(waits)

    def _passing(self, data: pa.RecordBatch) -> int:
        """How many rows at the beginning of `data` may pass at once. They are paid for."""
        if data.num_rows == 0:
            return 0
        now, each_bytes = trio.current_time(), data.nbytes / data.num_rows
        counts: list[int] = [data.num_rows]
        if self._rows is not None:
            counts.append(_or_all(self._rows.affordable(each=1, now_seconds=now), data))
        if self._bytes is not None:
            counts.append(_or_all(self._bytes.affordable(each=each_bytes, now_seconds=now), data))
        passing = min(counts)
        self._pay(passing, passing * each_bytes)
        return passing

    def _divided(self, batch: Batch) -> tuple[Batch, dict[str, Batch]]:
        data = batch.data
        passing = self._passing(data)
        if DROPPED not in self.context.listened and passing == data.num_rows:
            return batch, {}
        passes = _first(passing, data.num_rows)
        parts = {MAIN: (data.slice(0, passing), passes)}
        if DROPPED in self.context.listened:
            parts[DROPPED] = (data.slice(passing), pc.invert(passes))
        made = {name: _with(batch, rows, Selection(mask)) for name, (rows, mask) in parts.items()}
        return made.pop(MAIN), made

    def _tagged(self, batch: Batch) -> Batch:
        data = batch.data
        if TAG in data.schema.names:
            raise ConfigError(
                f"rate_limit: the rows have a column {TAG!r} already; rename it before "
                "rate_limit, or leave out one of two stages that tag"
            )
        tags = pc.invert(_first(self._passing(data), data.num_rows))
        tagged = Appended(TAG, tags)
        return _with(batch, tagged(data), tagged)


def _with(batch: Batch, rows: pa.RecordBatch, step: Step) -> Batch:
    return batch.with_data(rows, origin=None if batch.origin is None else batch.origin.through(step))


def _first(count: int, rows: int) -> pa.BooleanArray:
    """For each of so many rows whether it is among the first `count`."""
    return pa.concat_arrays([pa.repeat(True, count), pa.repeat(False, rows - count)])


def _or_all(count: int | None, data: pa.RecordBatch) -> int:
    return int(data.num_rows) if count is None else count
