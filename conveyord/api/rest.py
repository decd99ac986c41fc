"""REST: each operation of the table at its path below `/api/v1`, with problems as RFC 9457 has them (docs/api.md)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

import msgspec
import structlog

from conveyord.api.access import Access, Unknown
from conveyord.api.carrying_out import Desk
from conveyord.api.codes import (
    FORBIDDEN,
    MISDIRECTED,
    PRECONDITION_FAILED,
    SAFE_TO_REPEAT,
    TLS_REQUIRED,
    UNAUTHENTICATED,
    Declined,
    status_of,
)
from conveyord.api.context import Caller
from conveyord.api.figures import Figures
from conveyord.api.operation import Reply
from conveyord.api.operations import OPERATIONS
from conveyord.api.requests import JSON, request_of
from conveyord.api.routing import ROOT, NotAllowed, Routes
from conveyord.core.errors import ConveyordError
from conveyord.core.hosts import is_loopback
from conveyord.core.state.replies import CONFLICT
from conveyord.runtime import http_server as http
from conveyord.runtime.rpc.outcomes import INTERNAL

log = structlog.get_logger(__name__)

DOOR = "http"
INDEX_HEADER = "conveyord-index"
RETRY_AFTER_SECONDS = 1
NO_SNIFFING = {"x-content-type-options": "nosniff"}
_ENCODER = msgspec.json.Encoder()


class Rest:
    """For the trio thread."""

    def __init__(self, desk: Desk, access: Access, figures: Figures) -> None:
        self._desk = desk
        self._access = access
        self._figures = figures
        self._routes = Routes(OPERATIONS)

    def admit(self, head: http.Head) -> None:
        """Look at a head before its body is read. Raises http.Declined."""
        try:
            self._routes.find(head.method, head.path.removeprefix(ROOT))
            with suppress(Unknown):  # the leader may know it: that is asked once the request is whole
                self._access.find(self._bearer(head))
        except ConveyordError as error:
            raise self.problem(head, error) from error

    async def respond(self, head: http.Head, held: http.Held) -> http.Answer:
        """Answer a whole request. Raises http.Declined."""
        try:
            operation, fields = self._routes.find(head.method, head.path.removeprefix(ROOT))
            caller = replace(await self._caller_now(head), left=held.left)
            request = request_of(operation, fields, head.query, held.body, head.headers)
            held.release()
            reply = await self._desk.carry_out(operation, caller, request, door=DOOR)
            answer = http.Answer(200, _ENCODER.encode(reply), _headers(reply))
        except ConveyordError as error:
            raise self.problem(head, error) from error
        except Exception as error:  # a bug: it must end neither the connection nor the node
            log.exception("a request failed", method=head.method, path=head.path)
            raise self.problem(
                head, Declined(INTERNAL, "this failed for a reason that is in the log of the node; report it as a bug")
            ) from error
        self._figures.answered(operation.name, answer.status)
        return answer

    def caller(self, head: http.Head) -> Caller:
        """Who asks. Raises Declined, and Retryable while that cannot be told."""
        return self._access.check(self._bearer(head))

    async def _caller_now(self, head: http.Head) -> Caller:
        """Who asks, now that the body is there: the token may have been revoked meanwhile, or made just now."""
        bearer = self._bearer(head)
        try:
            return self._access.find(bearer)
        except Unknown:
            return await self._access.check_again(bearer)

    def _bearer(self, head: http.Head) -> str | None:
        """The token that came along, by a way that is good enough. Raises Declined."""
        if self._access.mode == "open":
            _check_site(head)
            return None
        given = head.headers.get("authorization")
        if given is None:
            return None
        scheme, _, token = given.partition(" ")
        if scheme.lower() != "bearer":
            raise self._access.refused(
                UNAUTHENTICATED, "the authorization is of another kind; send Authorization: Bearer cvd_..."
            )
        if not head.is_encrypted and not is_loopback(head.peer):
            raise self._access.refused(
                TLS_REQUIRED,
                "the token came over the network in clear text, so others may know it: revoke it, and use https",
            )
        return token.strip()

    def problem(self, head: http.Head, error: ConveyordError) -> http.Declined:
        """An error as HTTP tells it."""
        code, status = error.code, status_of(error.code)
        headers = dict(NO_SNIFFING)
        members = dict[str, str | int]()
        if code == CONFLICT and {"if-match", "if-none-match"} & head.headers.keys():
            code, status = PRECONDITION_FAILED, status_of(PRECONDITION_FAILED)
        if isinstance(error, NotAllowed):
            headers["allow"] = error.allow
        if isinstance(error, Declined):
            if error.field:
                members["field"] = error.field
            members.update(error.members)
            if error.index is not None:
                headers[INDEX_HEADER] = str(error.index)
        if status == 401:
            headers["www-authenticate"] = 'Bearer realm="conveyord"'
        if code in SAFE_TO_REPEAT:
            headers["retry-after"] = str(RETRY_AFTER_SECONDS)
        self._figures.answered(self._name(head), status)
        return http.problem(status, code, str(error), headers=headers, members=members)

    def _name(self, head: http.Head) -> str:
        """What an answer is counted by; nothing that a client could make up."""
        try:
            return self._routes.find(head.method, head.path.removeprefix(ROOT)).operation.name
        except Declined:
            return "none"


def _check_site(head: http.Head) -> None:
    """Refuse what a page of another site has a browser on this machine send: it looks like ours."""
    host = _hostname(f"//{head.headers.get('host', '')}")
    if not is_loopback(host):
        raise Declined(
            MISDIRECTED,
            f"the request is for {host[:80]!r}, not for this machine; ask at 127.0.0.1, or use conveyord start, which "
            "asks for tokens, where others are to reach the node",
        )
    origin = head.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != head.headers.get("host"):
        raise Declined(
            FORBIDDEN, f"a page of {origin[:80]!r} asks, which is not this node's own; use the page at /docs"
        )


def _hostname(url: str) -> str:
    """The name in an address, without a port and without the brackets of an IPv6 address."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _headers(reply: Reply) -> dict[str, str]:
    headers = {"content-type": JSON, INDEX_HEADER: str(reply.index), "cache-control": "no-store", **NO_SNIFFING}
    version = getattr(reply, "changed", None) or getattr(getattr(reply, "entry", None), "changed", None)
    if version:
        headers["etag"] = f'"{version}"'
    return headers
