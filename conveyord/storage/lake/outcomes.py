"""What an exception from a catalog call means. Every class is decided here, in one place.

The rule behind the table: only an answer that proves that nothing was applied may be acted upon as
such. Everything else is unknown, and is resolved by looking at the table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

from conveyord.core.errors import ConveyordError, StorageFull
from conveyord.core.planning.committer import Failed, Outcome

T = TypeVar("T")

PYICEBERG: dict[str, Outcome] = {
    # A requirement did not hold, or the catalog's own compare-and-set or lock went to somebody else.
    "CommitFailedException": Outcome.REFUSED,
    "ConditionalCheckFailedException": Outcome.REFUSED,
    "WaitingForLockException": Outcome.REFUSED,
    "NoSuchTableError": Outcome.GONE,
    "NoSuchIcebergTableError": Outcome.GONE,
    "NoSuchIdentifierError": Outcome.GONE,
    "NoSuchNamespaceError": Outcome.GONE,
    # No definite answer. RESTError itself covers 404 and 422 of a commit: the reload then tells.
    "CommitStateUnknownException": Outcome.UNKNOWN,
    "RESTError": Outcome.UNKNOWN,
    "ServerError": Outcome.UNKNOWN,
    "ServiceUnavailableError": Outcome.UNKNOWN,
    "TooManyRequestsError": Outcome.UNKNOWN,
    "DynamoDbError": Outcome.UNKNOWN,
    "GenericDynamoDbError": Outcome.UNKNOWN,
    "ResolveError": Outcome.UNKNOWN,
    # The request as such is not acceptable, or the settings are wrong.
    "BadRequestError": Outcome.DENIED,
    "UnauthorizedError": Outcome.DENIED,
    "ForbiddenError": Outcome.DENIED,
    "AuthorizationExpiredError": Outcome.DENIED,
    "OAuthError": Outcome.DENIED,
    "SignError": Outcome.DENIED,
    "ValidationError": Outcome.DENIED,
    "ValidationException": Outcome.DENIED,
    "NotInstalledError": Outcome.DENIED,
    "NoSuchPropertyException": Outcome.DENIED,
    # Of calls that a committer never makes; if one arrives, the catalog misunderstood us.
    "TableAlreadyExistsError": Outcome.DENIED,
    "ViewAlreadyExistsError": Outcome.DENIED,
    "NamespaceNotEmptyError": Outcome.DENIED,
    "NamespaceAlreadyExistsError": Outcome.DENIED,
    "NoSuchViewError": Outcome.DENIED,
    "NoSuchPlanTaskError": Outcome.DENIED,
}

# SQLite has no errno to offer. Its transaction is rolled back by these, but that is for the next look to say.
FULL_MESSAGES = (
    "database or disk is full",
    "readonly database",
    "unable to open database file",
    "Read-only file system",
    "No space left on device",
    "Disk quota exceeded",
)

BUGS = (AssertionError, AttributeError, NameError, LookupError, TypeError)


def failure(error: Exception, *, sent: bool) -> Failed:
    """Classify what a catalog call raised. `sent`: whether the catalog may have received a commit.

    Raises `error` itself if it is a failure that no outcome stands for: one of our own sentences
    (a corrupt fence), or a bug of ours before anything was sent.
    """
    # SQLAlchemy's own text repeats the statement and its parameters; the driver's says what happened.
    reason = f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"
    if isinstance(error, StorageFull):
        return Failed(Outcome.FULL_LATE if sent else Outcome.FULL, str(error))
    if isinstance(error, ConveyordError) or (isinstance(error, BUGS) and not sent):
        raise error
    for known, outcome in _classes():
        if isinstance(error, known):
            if outcome is Outcome.UNKNOWN and any(message in str(error) for message in FULL_MESSAGES):
                return Failed(Outcome.FULL_LATE if sent else Outcome.FULL, reason)
            return Failed(outcome, reason)
    if isinstance(error, PermissionError) and not sent:
        return Failed(Outcome.DENIED, reason)
    return Failed(Outcome.UNKNOWN, reason)


@cache
def _classes() -> tuple[tuple[type[Exception], Outcome], ...]:
    """The exception classes, subclasses first, so that the first match is the nearest."""
    from pyiceberg import exceptions
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    known = [(getattr(exceptions, name), outcome) for name, outcome in PYICEBERG.items()]
    known += [(NotImplementedError, Outcome.DENIED), (RequestException, Outcome.UNKNOWN)]
    known += [(SQLAlchemyError, Outcome.UNKNOWN)]
    return tuple(sorted(known, key=lambda pair: -len(pair[0].__mro__)))


def within(seconds: float, work: Callable[[], T]) -> T:
    """Blocking. Run `work` in a thread of its own and return or raise what it does.

    Raises TimeoutError after `seconds`. The thread is then abandoned, and its call may still have an
    effect later: nothing in Python can take it back, and a client library without a timeout may
    never return. Only calls whose late effect is harmless may be made through this.
    """
    answer: SimpleQueue[tuple[bool, object]] = SimpleQueue()
    done = threading.Event()

    def run() -> None:
        try:
            answer.put((True, work()))
        except BaseException as error:  # noqa: BLE001 - carried to the waiting thread, which raises it
            answer.put((False, error))
        finally:
            done.set()

    threading.Thread(target=run, name="catalog-call", daemon=True).start()
    if not done.wait(seconds):
        raise TimeoutError(f"the catalog did not answer within {seconds:g} s")
    succeeded, value = answer.get()
    if not succeeded:
        assert isinstance(value, BaseException)
        raise value
    return value  # type: ignore[return-value]
