"""Whose certificates are believed, by all who ask over https: the client of `http` stages, and that of registries."""

from __future__ import annotations

import ssl
from functools import cache

from conveyord.core.errors import ConfigError


def trusting(ca_file: str | None, *, option: str) -> ssl.SSLContext:
    """The well-known authorities, and those of `ca_file` (PEM) beside them. Blocking.

    option: how `ca_file` is written in a definition. Settings of the environment do not count. Raises ConfigError if
    the file cannot be read.
    """
    if ca_file is None:
        return _well_known()
    trust = _made()
    try:
        trust.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{option} {ca_file}: cannot be read as certificates in PEM form ({error})") from error
    return trust


@cache
def _well_known() -> ssl.SSLContext:
    """Made once, and never changed: reading them takes longer than many a request."""
    return _made()


def _made() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context(verify=True, trust_env=False)
