"""Codes of what is refused, and the status that HTTP has for each. By RPC the same codes travel by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

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
from conveyord.core.state import replies
from conveyord.runtime.http_faults import HEAD_TOO_LARGE, MALFORMED, UNSUPPORTED_TRANSFER
from conveyord.runtime.rpc.outcomes import DEADLINE, INTERNAL, NO_SUCH_METHOD, TOO_MANY_REQUESTS

BEHIND = "BEHIND"
COMPACTED = "COMPACTED"
FORBIDDEN = "FORBIDDEN"
METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
MISDIRECTED = "MISDIRECTED"
NO_SUCH_PATH = "NO_SUCH_PATH"
PRECONDITION_FAILED = "PRECONDITION_FAILED"
QUORUM = "QUORUM"
TLS_REQUIRED = "TLS_REQUIRED"
TOKEN_EXPIRED = "TOKEN_EXPIRED"
TOKEN_REVOKED = "TOKEN_REVOKED"
UNAUTHENTICATED = "UNAUTHENTICATED"
UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"

STATUSES: dict[str, tuple[HTTPStatus, str]] = {
    MALFORMED: (HTTPStatus.BAD_REQUEST, "it is no request that this operation takes; `field` says what of it"),
    replies.INVALID: (HTTPStatus.UNPROCESSABLE_ENTITY, "a name, number or text can never be right"),
    ConfigError.code: (HTTPStatus.UNPROCESSABLE_ENTITY, "what was given cannot work as written"),
    UNAUTHENTICATED: (HTTPStatus.UNAUTHORIZED, "no token, or none that is known here"),
    TOKEN_EXPIRED: (HTTPStatus.UNAUTHORIZED, "the token has expired"),
    TOKEN_REVOKED: (HTTPStatus.UNAUTHORIZED, "the token was revoked"),
    FORBIDDEN: (HTTPStatus.FORBIDDEN, "the token's role may not do that, or a page of another site asked"),
    TLS_REQUIRED: (HTTPStatus.FORBIDDEN, "a token came over the network in clear text; count it as known to others"),
    replies.NOT_FOUND: (HTTPStatus.NOT_FOUND, "there is no such object"),
    NO_SUCH_PATH: (HTTPStatus.NOT_FOUND, "there is nothing at that path"),
    METHOD_NOT_ALLOWED: (HTTPStatus.METHOD_NOT_ALLOWED, "the path is there, for the methods in `Allow`"),
    "TOO_SLOW": (HTTPStatus.REQUEST_TIMEOUT, "the request was not whole in time"),
    replies.CONFLICT: (HTTPStatus.CONFLICT, "the object is not at the index that was expected: read it again"),
    replies.DUPLICATE_NODE: (HTTPStatus.CONFLICT, "two nodes run under one id"),
    replies.EXISTS: (HTTPStatus.CONFLICT, "there is one already"),
    replies.LAST_ADMIN: (HTTPStatus.CONFLICT, "nobody could administer the cluster any more"),
    replies.LIMIT: (HTTPStatus.CONFLICT, "there is no room for one more"),
    replies.PROTOCOL: (HTTPStatus.CONFLICT, "a member does not know what is asked for"),
    replies.STALE: (HTTPStatus.CONFLICT, "it speaks for a node that was started again since"),
    replies.WRONG_STATE: (HTTPStatus.CONFLICT, "the object is in a state from which that does not lead"),
    QUORUM: (HTTPStatus.CONFLICT, "too few voters would be left to agree on anything"),
    Refused.code: (HTTPStatus.CONFLICT, "going on would break a promise"),
    Superseded.code: (HTTPStatus.CONFLICT, "it belongs to somebody else by now"),
    BEHIND: (HTTPStatus.CONFLICT, "the cursor is of another history, or beyond the state: read what is there now"),
    COMPACTED: (HTTPStatus.GONE, "events behind the cursor are not kept any more: read what is there now"),
    "LENGTH_REQUIRED": (HTTPStatus.LENGTH_REQUIRED, "the request does not say where its body ends"),
    PRECONDITION_FAILED: (HTTPStatus.PRECONDITION_FAILED, "`If-Match` or `If-None-Match` does not hold any more"),
    "TOO_LARGE": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large"),
    UNSUPPORTED_MEDIA_TYPE: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is not `application/json`"),
    MISDIRECTED: (HTTPStatus.MISDIRECTED_REQUEST, "the request is for another host; a page may have led it here"),
    TOO_MANY_REQUESTS: (HTTPStatus.TOO_MANY_REQUESTS, "too many at a time: send it again later"),
    HEAD_TOO_LARGE: (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request line and the headers are too large"),
    INTERNAL: (HTTPStatus.INTERNAL_SERVER_ERROR, "a bug of ours; the log of the node tells"),
    Corrupt.code: (HTTPStatus.INTERNAL_SERVER_ERROR, "stored bytes are not what was written"),
    UNSUPPORTED_TRANSFER: (HTTPStatus.NOT_IMPLEMENTED, "the body comes in a transfer encoding that is not known here"),
    NO_SUCH_METHOD: (HTTPStatus.NOT_IMPLEMENTED, "the node that leads does not know the operation: upgrade it"),
    Retryable.code: (HTTPStatus.SERVICE_UNAVAILABLE, "nothing was changed; trying again later may work"),
    replies.SESSION_NEEDED: (HTTPStatus.SERVICE_UNAVAILABLE, "a bug of ours; nothing was changed"),
    "SESSION_WINDOW": (HTTPStatus.SERVICE_UNAVAILABLE, "too many proposals wait; nothing was changed"),
    OutcomeUnknown.code: (HTTPStatus.GATEWAY_TIMEOUT, "it may have been done: look, then repeat"),
    "SESSION_EXPIRED": (HTTPStatus.GATEWAY_TIMEOUT, "likewise"),
    DEADLINE: (HTTPStatus.GATEWAY_TIMEOUT, "likewise: no answer came in time"),
    StorageFull.code: (HTTPStatus.INSUFFICIENT_STORAGE, "a disk is full; nothing that was promised is lost"),
}
"""Every code that a client may see, with its status and its meaning; docs/api.md is made from it."""

SAFE_TO_REPEAT = frozenset({Retryable.code, TOO_MANY_REQUESTS, "SESSION_WINDOW"})
"""Told with `Retry-After`: nothing was changed, and the same request may succeed later."""


class Declined(ConveyordError):
    """A request that is not carried out. code: one of `STATUSES`. field: which part of the request is at fault.

    index: of the state that it was judged by, if it was. members: what programs want to know of it beside the code.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str = "",
        index: int | None = None,
        members: Mapping[str, str | int] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.members = members
        self.code = code
        self.field = field
        self.index = index


def status_of(code: str) -> HTTPStatus:
    """The status for a code; one that came from a node of another version is an error of the server."""
    return STATUSES[code][0] if code in STATUSES else HTTPStatus.INTERNAL_SERVER_ERROR
