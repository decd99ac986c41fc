"""What a browser is given beside the API: an index, and Swagger UI. All of it lies here; none comes from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources

from conveyord.api.openapi import openapi
from conveyord.api.operations import OPERATIONS
from conveyord.api.requests import JSON
from conveyord.api.routing import ROOT
from conveyord.runtime.http_server import Answer

HTML, SCRIPT, STYLE, IMAGE = "text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css", "image/png"
# Swagger UI draws with styles that it writes itself, and has its icons as data.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFETY = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
PAGES: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", HTML),
    "/docs": ("docs.html", HTML),
    "/docs/start.js": ("start.js", SCRIPT),
    "/docs/swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js", SCRIPT),
    "/docs/swagger-ui.css": ("swagger-ui/swagger-ui.css", STYLE),
    "/docs/favicon-32x32.png": ("swagger-ui/favicon-32x32.png", IMAGE),
}
"""Path, file and content type."""
OPENAPI_PATH = f"{ROOT}/openapi.json"


def page(path: str, *, needs_token: bool) -> Answer | None:
    """The page at a path; None if there is none. Reads a file of the package the first time, which takes a moment.

    needs_token: whether the node wants one.
    """
    if path == OPENAPI_PATH:
        return Answer(200, _openapi(needs_token=needs_token), {"content-type": JSON, **SAFETY})
    if path not in PAGES:
        return None
    name, content_type = PAGES[path]
    return Answer(200, _file(name), {"content-type": content_type, "cache-control": "max-age=3600", **SAFETY})


@cache
def _file(name: str) -> bytes:
    return resources.files("conveyord.api.assets").joinpath(name).read_bytes()


@cache
def _openapi(*, needs_token: bool) -> bytes:
    return json.dumps(openapi(OPERATIONS, needs_token=needs_token), separators=(",", ":")).encode()
