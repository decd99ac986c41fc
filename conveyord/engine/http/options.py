"""The options that the `http` source and the `http` sink share, and the client made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from conveyord.core.errors import ConfigError
from conveyord.core.units import Bytes, Seconds
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.http.trust import trusting
from conveyord.engine.secrets import Secret
from conveyord.runtime.http_client import HttpClient, HttpLimits

OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that conveyord sets itself, because the framing of a request depends on them."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")


class HttpConfig(OperatorConfig):
    """What the source and the sink both take."""

    url: str = Field(
        description="An http or https address. No user and password in it: they belong into a header.",
        examples=["https://example.org/api/records"],
        min_length=1,
    )
    headers: dict[str, Secret] = Field(
        default={},
        description="Sent with each request, to the host of `url` alone. Values may be `env:NAME` or `file:PATH`, and "
        "are never shown.",
    )
    timeout: Seconds = Field(default=60.0, gt=0, le=3600, description="For one request, from first to last byte.")
    connect_timeout: Seconds = Field(default=10.0, gt=0, le=600, description="To connect.")
    read_timeout: Seconds = Field(default=30.0, gt=0, le=3600, description="Between two pieces of an answer.")
    max_body: Bytes = Field(
        default=64 * 1024 * 1024, ge=1024, le=1024**3, description="The largest answer, inflated, that is read."
    )
    ca_file: str | None = Field(
        default=None,
        description="Certificates (PEM) to trust beside the well-known ones, for an authority of your own.",
    )


def address_mistake(url: str) -> str | None:
    """What is wrong with an address, as far as looking at it tells."""
    try:
        parts = urlsplit(url)
        has_user = parts.username is not None or parts.password is not None
        _ = parts.port
    except ValueError as error:
        return f"not an address: {error}"
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return "must begin with http:// or https:// and name a host"
    if has_user:
        return "holds a user or a password, which would be shown; put it into headers, such as Authorization"
    return "ends in a fragment (#...), which is never sent; leave it out" if parts.fragment else None


def http_mistakes(config: HttpConfig) -> dict[Any, str]:
    """What is wrong with the shared options, by key. See `Operator.mistakes`."""
    found: dict[Any, str] = {}
    if (mistake := address_mistake(config.url)) is not None:
        found["url"] = mistake
    for name in config.headers:
        if _HEADER_NAME.fullmatch(name) is None:
            found["headers", name] = f"{name!r} is not the name of a header"
        elif name.lower() in OURS:
            found["headers", name] = f"{name} is set by conveyord itself; leave it out"
    return found


def revealed(secrets: Mapping[str, Secret], key: str) -> dict[str, str]:
    """The secrets of an option called `key`. Blocking. Raises ConfigError naming the entry, never its value."""
    found = {}
    for name, secret in secrets.items():
        try:
            found[name] = secret.reveal()
        except ConfigError as error:
            raise ConfigError(f"{key}.{name}: {error}") from error
    return found


async def open_client(config: HttpConfig, context: OperatorContext, *, connections: int = 1) -> HttpClient:
    """A client for the address of `config`. Raises ConfigError if a secret or a certificate cannot be had."""
    limits = HttpLimits(
        body_bytes_max=config.max_body,
        connect_seconds=config.connect_timeout,
        read_seconds=config.read_timeout,
        total_seconds=config.timeout,
        connections_max=connections,
    )

    def work() -> HttpClient:
        headers = revealed(config.headers, "headers")
        for name, value in headers.items():
            # What the protocol library says of such a value quotes it.
            if _HEADER_VALUE.fullmatch(value) is None:
                raise ConfigError(
                    f"headers.{name}: its value is empty, begins or ends with a space, or holds a character that no "
                    "header may have (a line end, or one that is not ASCII)"
                )
        trust = trusting(config.ca_file, option="ca_file")
        return HttpClient(config.url, limits=limits, credentials=headers, trust=trust)

    return await context.in_thread(work)
