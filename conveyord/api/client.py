"""Calls of operations at nodes, typed by the table. Blocking."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from conveyord import __version__
from conveyord.api.client_http import (
    API,
    Answered,
    Asked,
    Cut,
    DeadlinePassed,
    Server,
    Unreachable,
    exchange,
    trust,
)
from conveyord.api.operation import Operation, ReplyT, Request, RequestT
from conveyord.core.errors import ConfigError, ConveyordError, OutcomeUnknown, Retryable

CONNECT_SECONDS = 5.0  # for one server, if others can be asked
DETAIL_CHARS_MAX = 2_000
NOT_NOW = (429, 503)  # nothing was done, and another node may do it
NOT_KNOWN = (502, 504)  # whoever says this has asked somebody else, and had no answer
GATEWAY_STATUS_MIN = 502  # from here on a proxy may speak
LONGER = "; wait longer, or ask another node"
SEE_BEFORE_REPEATING = "it may have been carried out, so look before you repeat it"


class Problem(ConveyordError):
    """A node has refused (RFC 9457). status: of HTTP. code: stable, see docs/errors.md. members: what else it told."""

    def __init__(self, status: int, code: str, detail: str, members: dict[str, Any]) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.members = members


class Client:
    """Asks the first of `servers` that can be reached. May be used by several threads.

    token: sent as Bearer; empty for none. ca: a PEM file of the authority that signs the servers' certificates, None
    for those of the system. timeout_seconds: for a whole call, beside what its request says to wait for. Raises
    ConfigError for a token that would go over the network in clear text.
    """

    def __init__(
        self, servers: Sequence[Server], *, token: str = "", ca: Path | None = None, timeout_seconds: float = 30.0
    ) -> None:
        assert servers, "no server"
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise ConfigError("the token holds characters that no token has; copy it again, without spaces and quotes")
        for server in servers:
            if token and not server.is_tls and not server.is_loopback:
                raise ConfigError(
                    f"a token would go to {server} in clear text, where others can read it; use https://, or call from "
                    "the node's own machine"
                )
        self._servers = tuple(servers)
        self._token = token
        self._trust = trust(ca) if any(server.is_tls for server in servers) else None
        self._timeout_seconds = timeout_seconds

    def call(self, operation: Operation[RequestT, ReplyT], request: RequestT) -> ReplyT:
        """Ask, and return the reply.

        The next server is asked where one cannot be reached or says that it can do nothing now; after a read also where
        the connection was lost. Raises Problem for what a node refuses, Unreachable and other Retryable where surely
        nothing was done, OutcomeUnknown where that is not known, DeadlinePassed, and ConfigError for what is no node.
        """
        asked = asked_for(operation, request, self._token)
        deadline = time.monotonic() + self._timeout_seconds + getattr(request, "wait_seconds", 0.0)
        failures: list[ConveyordError] = []
        for left in range(len(self._servers), 0, -1):
            server = self._servers[-left]
            connect_seconds = CONNECT_SECONDS if left > 1 else deadline - time.monotonic()
            try:
                answered = exchange(server, self._trust, asked, deadline=deadline, connect_seconds=connect_seconds)
                return _reply(server, operation, answered)
            except Unreachable as error:
                failures.append(error)
            except Cut as error:
                if not operation.is_read:
                    is_told = error.code == OutcomeUnknown.code
                    raise OutcomeUnknown(str(error) if is_told else f"{error}; {SEE_BEFORE_REPEATING}") from error
                failures.append(Cut(f"{error}; ask again"))
            except Problem as error:
                if error.status in NOT_KNOWN and not operation.is_read:
                    is_told = error.code == OutcomeUnknown.code
                    raise OutcomeUnknown(str(error) if is_told else f"{error}; {SEE_BEFORE_REPEATING}") from error
                if error.status not in NOT_NOW:
                    raise self._explained(error) from None
                failures.append(error)
            except DeadlinePassed as error:
                told = "; ".join(map(str, [*failures, error] if error.was_sent else failures or [error]))
                raise _in_time(told, error, self._timeout_seconds, is_read=operation.is_read) from error
        if len(failures) == 1:
            raise failures[0]
        raise Retryable(f"none of {len(failures)} servers can do it: " + "; ".join(map(str, failures)))

    def _explained(self, problem: Problem) -> Problem:
        """With what to do about it, where nobody on the other side can know that."""
        if problem.status != 401 or self._token:
            return problem
        detail = f"{problem}; give --token, a context that has one, or --data-dir on the node's own machine"
        return Problem(problem.status, problem.code, detail, problem.members)


def asked_for(operation: Operation[RequestT, ReplyT], request: RequestT, token: str = "") -> Asked:
    """The HTTP request for one of an operation: fields that the path names, then the query, or a body of JSON.

    Raises ConfigError for what no path can name.
    """
    given: dict[str, Any] = msgspec.to_builtins(request)
    path = API
    for text, name, kind, _ in Formatter().parse(operation.path):
        path += text
        if name is not None:
            if not (value := given.pop(name)):
                raise ConfigError(f"the {name} is empty; name one")
            path += quote(value, safe="/" if kind == "path" else "")
    headers = {"accept": "application/json, application/problem+json", "user-agent": f"conveyord/{__version__}"}
    headers["connection"] = "close"
    if token:
        headers["authorization"] = f"Bearer {token}"
    if operation.method in ("POST", "PUT"):
        headers["content-type"] = "application/json"
        return Asked(operation.method, path, headers, msgspec.json.encode(given))
    query = urlencode([(name, _query_text(value)) for name, value in given.items() if _is_said(request, name)])
    return Asked(operation.method, f"{path}?{query}" if query else path, headers)


def _is_said(request: Request, name: str) -> bool:
    """Whether a field is anything but its default."""
    default = next(field.default for field in msgspec.structs.fields(request) if field.encode_name == name)
    return default is msgspec.NODEFAULT or getattr(request, name) != default


def _query_text(value: bool | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reply(server: Server, operation: Operation[Any, ReplyT], answered: Answered) -> ReplyT:
    if answered.kind == "application/problem+json":
        raise _problem(server, answered)
    if answered.kind == "application/json" and answered.status < 300:
        try:
            return msgspec.json.decode(answered.body, type=operation.reply)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{server} answers {operation.name!r} with what this program ({__version__}) does not know ({error}); "
                "use the conveyorctl of the node's version, and look at the address"
            ) from error
    if 300 <= answered.status < 400:
        raise ConfigError(
            f"{server} sends on to {_printable(answered.location)!r}, and tokens are not taken along; give that address"
        )
    if answered.status >= GATEWAY_STATUS_MIN:
        if answered.status in NOT_KNOWN and not operation.is_read:
            raise OutcomeUnknown(f"{_of_a_proxy(server, answered)}; {SEE_BEFORE_REPEATING}")
        raise Unreachable(f"{_of_a_proxy(server, answered)}; look at it and the nodes behind it")
    kind = _printable(answered.kind) or "nothing that has a type"
    raise ConfigError(
        f"what answers at {server} is no node of conveyord (status {answered.status}, {kind}); look at address and port"
    )


def _of_a_proxy(server: Server, answered: Answered) -> str:
    return f"a proxy, not a node, answered at {server} (status {answered.status})"


def _problem(server: Server, answered: Answered) -> ConfigError | Problem:
    try:
        told = msgspec.json.decode(answered.body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        return ConfigError(f"{server} answers with a problem that is not JSON ({error}); look at address and port")
    code = _printable(str(told.pop("code", "ERROR")))
    detail = _printable(str(told.pop("detail", None) or told.get("title") or f"status {answered.status}"))
    return Problem(answered.status, code, detail, told)


def _in_time(told: str, error: DeadlinePassed, seconds: float, *, is_read: bool) -> DeadlinePassed:
    """The same with what else is to be said. told: of the servers, those before it included."""
    risk = f"; {SEE_BEFORE_REPEATING}" if error.was_sent and not is_read else ""
    return DeadlinePassed(f"{told} (--timeout {seconds:g}s){risk or LONGER}", was_sent=error.was_sent)


def _printable(text: str) -> str:
    """What a server has said, on one line and not without end: it may be anybody's."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:DETAIL_CHARS_MAX])
