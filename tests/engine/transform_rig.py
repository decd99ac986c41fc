"""Transforms by themselves: made from options as a definition gives them, and run over batches of any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import trio

from conveyord.engine.contracts import DeadLetters, OperatorContext, Retries, Transform
from conveyord.engine.registry import stage_config

LAYOUTS = ("string", "large_string", "string_view", "dictionary")


def made(
    operator: type[Transform],
    *,
    listened: frozenset[str] = frozenset(),
    dead_letters: DeadLetters | None = None,
    **options: Any,
) -> Any:
    """An operator from options as they stand in a definition. Raises ConfigError as the loader would."""
    context = OperatorContext(
        pipeline="default/test",
        stage="stage",
        data_dir=Path("unused"),
        threads=trio.CapacityLimiter(1),
        listened=listened,
        dead_letters=dead_letters,
        retries=Retries(count_max=0),
    )
    return operator(stage_config(operator, options, stage="stage"), context)


def texts(values: list[str | None], layout: str = "string") -> pa.Array:
    """Strings in one of Arrow's layouts."""
    array = pa.array(values, pa.string())
    if layout == "dictionary":
        return array.dictionary_encode()
    return array.cast(
        {"string": pa.string(), "large_string": pa.large_string(), "string_view": pa.string_view()}[layout]
    )


def rows(*values: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(values))


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.record_batch(columns)
