"""Every exception that conveyord raises on purpose, grouped by what the caller must do.

A message names the thing, its value, the limit and the remedy, in one or two sentences, because it
is what a user reads: the command line prints it without a traceback. Anything that is not a
`ConveyordError` is a bug of ours.
"""

from __future__ import annotations


class ConveyordError(Exception):
    """Base of all expected failures. `code` is stable across releases and safe to match on."""

    code = "ERROR"


class ConfigError(ConveyordError):
    """A definition or setting cannot work as written. Do not retry: someone must edit it."""

    code = "CONFIG"


class RecordError(ConveyordError):
    """One record cannot be used, for ever. `place` says where it stands, `reason` why.

    `code` is one of the stable codes listed in docs/errors.md, such as `MALFORMED_RECORD`.
    """

    def __init__(self, place: str, reason: str, *, code: str = "MALFORMED_RECORD") -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason
        self.code = code


class BatchError(ConveyordError):
    """A stage cannot process a whole batch, and no single record is known to be at fault."""

    code = "BATCH_FAILED"


class Refused(ConveyordError):
    """Going on would break a promise (a rolled back table, a replaced file). An operator decides."""

    code = "REFUSED"


class Superseded(ConveyordError):
    """What was read and is not committed is another process's by now. Committing it would double it: the run stops
    at once, and nothing more is committed.
    """

    code = "SUPERSEDED"


class Retryable(ConveyordError):
    """Something outside was not available. Trying again later may work."""

    code = "UNAVAILABLE"


class OutcomeUnknown(ConveyordError):
    """A write may or may not have happened. Look before repeating it; delete nothing it may use."""

    code = "OUTCOME_UNKNOWN"


class StorageFull(ConveyordError):
    """A disk is full or read-only. Nothing that was promised is lost; free space and run again."""

    code = "STORAGE_FULL"


class Corrupt(ConveyordError):
    """Stored bytes are not what was written. Says where, and what to restore."""

    code = "CORRUPT"
