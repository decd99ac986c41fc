"""How calls and connections fail, on this side and on the other."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from conveyord.core.errors import (
    ConfigError,
    ConveyordError,
    Corrupt,
    OutcomeUnknown,
    Refused,
    Retryable,
    StorageFull,
    Superseded,
)
from conveyord.core.wire.heads import NAME_CHARS_MAX, SENTENCE_CHARS_MAX

log = structlog.get_logger(__name__)

INTERNAL = "INTERNAL"
NO_SUCH_METHOD = "NO_SUCH_METHOD"
TOO_MANY_REQUESTS = "TOO_MANY_REQUESTS"
DEADLINE = "DEADLINE"


class RemoteError(ConveyordError):
    """A handler on the other side failed. `code` and the message are its own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DeadlineOver(OutcomeUnknown):
    """No answer came within the deadline of a call that was sent. It may have had its effect."""

    code = DEADLINE


class Unwelcome(Refused):
    """One side does not want the connection, and says why. `code` in lower case is what it is counted by."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _RemoteConfig(RemoteError, ConfigError):
    pass


class _RemoteRefused(RemoteError, Refused):
    pass


class _RemoteSuperseded(RemoteError, Superseded):
    pass


class _RemoteRetryable(RemoteError, Retryable):
    pass


class _RemoteOutcomeUnknown(RemoteError, OutcomeUnknown):
    pass


class _RemoteDeadline(RemoteError, DeadlineOver):
    pass


class _RemoteStorageFull(RemoteError, StorageFull):
    pass


class _RemoteCorrupt(RemoteError, Corrupt):
    pass


_BY_CODE: dict[str, type[RemoteError]] = {
    ConfigError.code: _RemoteConfig,
    Refused.code: _RemoteRefused,
    Superseded.code: _RemoteSuperseded,
    Retryable.code: _RemoteRetryable,
    OutcomeUnknown.code: _RemoteOutcomeUnknown,
    StorageFull.code: _RemoteStorageFull,
    Corrupt.code: _RemoteCorrupt,
    DEADLINE: _RemoteDeadline,
    TOO_MANY_REQUESTS: _RemoteRetryable,  # it was not begun
}


def remote_error(code: str, message: str) -> RemoteError:
    """What to raise for the failure of a remote handler: a RemoteError that is also of the class the code tells of."""
    return _BY_CODE.get(code, RemoteError)(code, message)


def told(error: Exception, method: str) -> tuple[str, str]:
    """Code and message for the caller of a handler that failed. What nobody expected is logged here, and not told."""
    if isinstance(error, ConveyordError):
        return error.code[:NAME_CHARS_MAX], str(error)[:SENTENCE_CHARS_MAX]
    log.error("a handler failed", method=method, exc_info=error)
    return INTERNAL, f"{method} failed for a reason that is in the log of the node that was asked"


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ended. reason: one word, to count by; in upper case the code of the goodbye."""

    reason: str
    message: str
