"""Answers that say record by record what became of a request."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.http.answers import ABSENT, parsed, value_at
from conveyord.engine.poison import Poison
from conveyord.runtime.http_client import HttpClient, Reply

KEYS_SHOWN_MAX = 10  # of an answer that is another than was expected


class ResultsConfig(OperatorConfig):
    """How an answer says which records of a request the receiver took. Paths are keys with dots between."""

    path: str | None = Field(
        default=None,
        description="Where the list is that has one entry per record, in order; empty if it is the answer itself. "
        "Without it 2xx means that all were taken.",
    )
    status: str = Field(default="status", description="Where an entry says how it went. Empty: the entry itself.")
    ok: tuple[str | int | bool, ...] = Field(
        default=("ok",), min_length=1, description="What it says there of a record that was taken, such as ok or 201."
    )
    error: str = Field(default="error", description="Where an entry says why not.")


def failed_rows(client: HttpClient, reply: Reply, config: ResultsConfig, *, rows: int) -> list[Poison]:
    """The rows of a request that the receiver did not take, numbered from its first.

    Raises ConfigError if the answer does not tell: what became of the rows is not known then.
    """
    assert config.path is not None, "asked for results without a path to them"
    document = parsed(reply)
    entries = value_at(document, config.path)
    if not isinstance(entries, list):
        found = (
            f"its keys are {', '.join(sorted(document)[:KEYS_SHOWN_MAX])}"
            if isinstance(document, dict)
            else "it is no object"
        )
        raise ConfigError(f"{reply.address}: the answer has no list at results.path ({config.path!r}); {found}")
    if len(entries) != rows:
        raise ConfigError(
            f"{reply.address}: {len(entries)} results for {rows} records, so which failed cannot be told; "
            "check results.path, or leave results out if the receiver takes a request whole or not at all"
        )
    taken = {_word(value) for value in config.ok}
    failed = []
    for number, entry in enumerate(entries):
        status = value_at(entry, config.status)
        if status is ABSENT:
            raise ConfigError(f"{reply.address}: result {number} has nothing at results.status ({config.status!r})")
        if _word(status) not in taken:
            error = value_at(entry, config.error)
            reason = _word(status) if error is ABSENT or error is None else f"{_word(status)}: {_word(error)}"
            failed.append(Poison(number, BatchError(f"{reply.address}: {client.showable(reason)}")))
    return failed


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
