"""The options of an `http` source that listens, and what can be wrong with them."""

from __future__ import annotations

import re
import ssl
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from conveyord.core.errors import ConfigError
from conveyord.core.hosts import is_loopback
from conveyord.core.units import Bytes, Seconds, format_bytes, format_seconds
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.http.options import OURS, HttpConfig, address_mistake
from conveyord.engine.secrets import Secret

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class PushConfig(OperatorConfig):
    """What counts with `mode: push` alone."""

    token: Secret | None = Field(
        default=None,
        description="What a sender must give as `Authorization: Bearer ...`. Needed to listen beyond this machine.",
    )
    allow_anyone: bool = Field(default=False, description="Listen beyond this machine without a token.")
    certificate: str | None = Field(
        default=None, description="The certificate chain (PEM) for an address with https; may hold its key too."
    )
    certificate_key: str | None = Field(default=None, description="The key (PEM), if it is in a file of its own.")
    key_header: str = Field(default="Idempotency-Key", description="The header that holds a request's key.")
    require_key: bool = Field(
        default=True, description="Refuse requests without a key: sent again, they would be taken again."
    )
    keep_keys: Seconds = Field(default=7 * 86400.0, ge=60.0, description="A key is forgotten when it is older.")
    keys_max: int = Field(
        default=1_000_000, ge=1, le=100_000_000, description="A key is forgotten when there are so many newer ones."
    )
    respond: Literal["accepted", "committed"] = Field(
        default="accepted",
        description="When to answer: `accepted`, with 202, once the records are on this machine's disk; `committed`, "
        "with 200, once every sink has them.",
    )
    commit_within: Seconds = Field(
        default=1.0,
        ge=0.0,
        le=3600.0,
        description="With `respond: committed`, sinks commit after so long, however long their own interval: requests "
        "that come meanwhile share the commit.",
    )
    commit_timeout: Seconds = Field(
        default=30.0,
        gt=0.0,
        le=3600.0,
        description="With `respond: committed`, the longest wait; then the answer is 503, and the same request, sent "
        "again, waits on.",
    )
    journal: Bytes = Field(
        default=1024**3, ge=1024, description="What may wait on disk for the sinks; beyond it the answer is 503."
    )
    memory: Bytes = Field(
        default=256 * 1024**2,
        ge=64 * 1024,
        description="What requests that are being read may hold together; else 429.",
    )
    connections: int = Field(default=256, ge=1, le=10_000, description="Connections that are served at a time.")
    on_lost_journal: Literal["fail", "restart"] = Field(
        default="fail",
        description="What to do if a sink has records of a journal that is not in the data directory any more: `fail`, "
        "or `restart` with a new one, which knows no key.",
    )


def push_mistakes(config: HttpConfig, push: PushConfig) -> dict[Any, str]:
    """What is wrong with the options of a source that listens, by key. See `Operator.mistakes`."""
    if (mistake := address_mistake(config.url)) is not None:
        return {"url": mistake}
    parts = urlsplit(config.url)
    found: dict[Any, str] = {}
    if parts.query:
        found["url"] = "ends in a query; a source listens at a path"
    if parts.scheme == "https" and push.certificate is None:
        found["push"] = "an address with https needs certificate"
    elif parts.scheme == "http" and push.certificate is not None:
        found["push", "certificate"] = "has no meaning for an address with http; write https"
    elif push.certificate is None and push.certificate_key is not None:
        found["push", "certificate_key"] = "needs certificate"
    if not is_loopback(parts.hostname or "") and push.token is None and not push.allow_anyone:
        found["push"] = f"anyone who reaches {parts.hostname} could send records; set token, or allow_anyone: true"
    if _HEADER_NAME.fullmatch(push.key_header) is None or push.key_header.lower() in OURS:
        found["push", "key_header"] = f"{push.key_header!r} cannot hold a key"
    if push.respond == "committed" and not push.require_key:
        found["push", "require_key"] = "respond: committed needs keys, so that a request can be sent again"
    if push.commit_timeout <= push.commit_within:
        found["push", "commit_timeout"] = f"must be longer than commit_within ({format_seconds(push.commit_within)})"
    if push.memory < 2 * config.max_body:
        found["push", "memory"] = f"must hold two requests of max_body ({format_bytes(config.max_body)}); lower that"
    if push.journal < config.max_body:
        found["push", "journal"] = f"must hold a request of max_body ({format_bytes(config.max_body)}); lower that"
    return found


def tls_context(push: PushConfig) -> ssl.SSLContext | None:
    """What encrypts, if anything does. Blocking. Raises ConfigError if the certificate cannot be used."""
    if push.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(push.certificate, push.certificate_key)
    except (OSError, ssl.SSLError) as error:
        where = push.certificate if push.certificate_key is None else f"{push.certificate}, {push.certificate_key}"
        raise ConfigError(f"push.certificate ({where}): {error.strerror or error}; give a chain and its key") from error
    return context
