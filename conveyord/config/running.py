"""Settings of runs, and of what all of a process shares: logs, disk for spilling and for dead letters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from conveyord.config.values import Address, AddressOrEmpty, Model, parse_address
from conveyord.core.units import Bytes, parse_seconds

CHANNEL_CAPACITY_MAX = 1024  # batches; beyond this a channel holds gigabytes and hides a slow sink
THREADS_MAX = 256
SPILL_BUDGET_BYTES = 10 * 1024**3  # hours of a stalled branch, and little of a server's disk
DEAD_LETTERS_BUDGET_BYTES = 1024**3  # a million letters of a kilobyte: more than anyone repairs by hand
DEAD_LETTERS_BUDGET_BYTES_MIN = 1024**2  # less would not hold one large record and the index
DEAD_LETTERS_RETENTION_SECONDS = 30 * 86400.0


class RunConfig(Model):
    """How pipelines are run. `channel_capacity` is in batches per edge; `threads` 0 means one per core.

    metrics: HOST:PORT where Prometheus may scrape a run; empty for nowhere.
    """

    channel_capacity: int = Field(default=8, ge=1, le=CHANNEL_CAPACITY_MAX)
    threads: int = Field(default=0, ge=0, le=THREADS_MAX)
    metrics: AddressOrEmpty = ""

    def metrics_address(self, port: int | None = None) -> Address | None:
        """Where to serve metrics. port: wins over the one in `metrics`; without `metrics`, on loopback alone."""
        configured = parse_address(self.metrics) if self.metrics else None
        if port is None:
            return configured
        return Address("127.0.0.1" if configured is None else configured.host, port)


class LogConfig(Model):
    """What is logged to stderr, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class SpillConfig(Model):
    """Disk for branches with `on_slow: spill`. `budget` is in bytes, for all of a process together."""

    budget: Bytes = Field(default=SPILL_BUDGET_BYTES, gt=0)


def _parse_retention(value: object) -> float | None:
    if value is None or value == "forever":
        return None
    return parse_seconds(value)


class DeadLettersConfig(Model):
    """Records that failed for ever. `budget` is in bytes; `retention` in seconds, None for ever."""

    budget: Bytes = Field(default=DEAD_LETTERS_BUDGET_BYTES, ge=DEAD_LETTERS_BUDGET_BYTES_MIN)
    retention: Annotated[float | None, BeforeValidator(_parse_retention)] = Field(
        default=DEAD_LETTERS_RETENTION_SECONDS, gt=0
    )
