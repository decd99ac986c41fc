"""Which dead letters a verb means, and opening them for a change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from conveyord.cli.options import F, Setting
    from conveyord.storage.dead_letters.letters import Selection, StoredLetter
    from conveyord.storage.dead_letters.store import DeadLetterStore

ID_MAX = 2**63 - 1  # SQLite's
DEFAULT_NAMESPACE = "default"


def selection_options(command: F) -> F:
    """`--pipeline`, `--stage`, `--code`, `--id` and `--since`, which `selection_of` takes by these names."""
    for option in (
        click.option("--since", metavar="TIME", help="Failed at or after then: 2h (ago), or 2026-01-31T08:00Z."),
        click.option("--id", "ids", type=click.IntRange(1, ID_MAX), multiple=True, help="This one. May be repeated."),
        click.option("--code", help="Failed with this code, such as TYPE_MISMATCH."),
        click.option("--stage", help="Failed in this stage."),
        click.option("--pipeline", help="Of this pipeline, [NAMESPACE/]NAME."),
    ):
        command = option(command)
    return command


def selection_of(
    pipeline: str | None, stage: str | None, code: str | None, ids: tuple[int, ...], since: str | None
) -> Selection:
    """What the options of `selection_options` mean together. Raises ConfigError for a time that is none."""
    from conveyord.storage.dead_letters.letters import Selection

    if pipeline is not None and "/" not in pipeline:
        pipeline = f"{DEFAULT_NAMESPACE}/{pipeline}"
    return Selection(
        pipeline=pipeline,
        stage=stage,
        code=code,
        ids=ids or None,
        since_micros=None if since is None else _since_micros(since),
    )


def now_micros() -> int:
    """The time as dead letters are stamped with it."""
    return time.time_ns() // 1000


def moment(micros: int) -> str:
    """A stored time as ISO 8601 in UTC, to the millisecond."""
    at = datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def find(data_dir: Path, letter_id: int) -> StoredLetter:
    """The letter of that id. Raises ConfigError if there is none."""
    from conveyord.core.errors import ConfigError
    from conveyord.storage.dead_letters.reader import DeadLetterReader

    with DeadLetterReader(data_dir) as reader:
        stored = reader.get(letter_id)
    if stored is None:
        raise ConfigError(f"there is no dead letter {letter_id} in {data_dir}; `conveyord dlq list --each` shows all")
    return stored


@contextmanager
def opened_to_change(setting: Setting) -> Iterator[DeadLetterStore]:
    """The store of a data directory, owned meanwhile. Raises Refused if a run owns it."""
    from conveyord.storage.dead_letters.store import DeadLetterStore
    from conveyord.storage.locks import owned

    limits = setting.config.dead_letters
    with (
        owned(setting.data_dir),
        DeadLetterStore(
            setting.data_dir,
            budget_bytes=limits.budget,
            retention_seconds=limits.retention,
            at_micros=now_micros(),
        ) as store,
    ):
        yield store


def _since_micros(text: str) -> int:
    from conveyord.core.errors import ConfigError
    from conveyord.core.units import parse_seconds

    try:
        return max(0, now_micros() - int(parse_seconds(text) * 1_000_000))
    except ValueError:
        pass  # not a duration; a time, then
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"--since {text!r} is neither a duration such as 2h nor a time such as 2026-01-31T08:00Z"
        ) from error
    # A time without a zone is UTC, which is how times are printed.
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000_000)
