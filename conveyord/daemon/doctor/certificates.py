"""Whether certificates would be accepted, found out by a handshake with themselves."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conveyord.config.model import Config
from conveyord.core.errors import ConfigError
from conveyord.daemon.doctor.findings import Finding
from conveyord.daemon.services import http_tls, rpc_tls
from conveyord.runtime.rpc.tls import node_names

DAYS_WISHED = 14
DAY_SECONDS = 86400.0


def look_at_certificates(config: Config, node: str | None, *, now_seconds: float) -> Iterator[Finding]:
    """Blocking, for a moment. node: its id, as far as it is known. now_seconds: Unix time."""
    rpc, http = config.rpc.tls, config.http.tls
    if rpc.certificate:
        check = "certificate of RPC"
        try:
            contexts = rpc_tls(rpc)
            assert contexts is not None
            shown = _shown(contexts.context(server_side=True), contexts.context(server_side=False))
        except (ConfigError, ssl.SSLError) as error:
            yield _unusable(check, rpc.certificate, error)
        else:
            yield _of_age(check, rpc.certificate, shown, now_seconds)
            yield from _of_names(rpc.certificate, node_names(shown), node)
    if http.certificate:
        check = "certificate of HTTP"
        try:
            server = http_tls(http)
            assert server is not None
            shown = _shown(server.context(), _believing(Path(http.certificate)))
        except (ConfigError, ssl.SSLError) as error:
            yield _unusable(check, http.certificate, error)
        else:
            yield _of_age(check, http.certificate, shown, now_seconds)


def _believing(certificate: Path) -> ssl.SSLContext:
    """A client that believes this certificate by itself: who else does is not known here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def _shown(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """The certificate that a server shows a client, which has accepted it. Raises ssl.SSLError if it has not."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        client.wrap_bio(to_client, to_server, server_side=False),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = list(sides)
    while waiting:
        for side in tuple(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    return sides[0].getpeercert() or {}


def _unusable(check: str, certificate: str, error: Exception) -> Finding:
    refused = isinstance(error, ssl.SSLCertVerificationError)
    reason = f"{certificate} is not accepted: {error.verify_message}" if refused else str(error)  # type: ignore[attr-defined]
    return Finding(check, "wrong", reason, "have it issued anew; files that are renewed are taken without a restart")


def _of_age(check: str, certificate: str, shown: dict[str, Any], now_seconds: float) -> Finding:
    until = str(shown.get("notAfter"))
    days = (ssl.cert_time_to_seconds(until) - now_seconds) / DAY_SECONDS
    found = f"{certificate} is valid until {until}, {days:.0f} days from now"
    if days < DAYS_WISHED:
        return Finding(check, "warning", found, "renew it soon; the new one is taken without a restart")
    return Finding(check, "ok", found)


def _of_names(certificate: str, names: frozenset[str], node: str | None) -> Iterator[Finding]:
    named = ", ".join(sorted(names)) or "no node"
    if node is not None and node not in names:
        yield Finding(
            "name in the certificate",
            "wrong",
            f"{certificate} names {named}, and this node is {node}",
            f"have one issued with the URI conveyord://node/{node}, or others refuse this node",
        )
    elif node is None:
        yield Finding("name in the certificate", "info", f"{certificate} names {named}; set node.id to that")
    else:
        yield Finding("name in the certificate", "ok", f"{certificate} names {named}")
