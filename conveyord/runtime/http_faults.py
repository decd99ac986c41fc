"""What h11 does not take for HTTP, with a status, a code and a sentence. Pure.

What h11 says holds bytes as Python writes them, and names what its own code calls things. Nothing of what came is
repeated: it may be anything.
"""

from __future__ import annotations

from typing import NamedTuple

import h11

HEAD_TOO_LARGE = "HEAD_TOO_LARGE"
MALFORMED = "MALFORMED_REQUEST"
UNSUPPORTED_TRANSFER = "UNSUPPORTED_TRANSFER"

_NO_REQUEST = "the first line is no request line of HTTP/1.1, such as GET /path HTTP/1.1; look at scheme and port"
_NO_HEADER = "a line of the head is no header; write NAME: VALUE in visible characters, one on each line"
_NO_CHUNK = "the body is not in proper chunks; send each as its size in hexadecimal, its bytes, and an empty line last"
_TRANSFERS = "the body comes in a transfer encoding that is not known here; send it with Content-Length, or in chunks"

# By how the sentence of h11 begins.
_SENTENCES = {
    "illegal request line": _NO_REQUEST,
    "no request line received": _NO_REQUEST,
    "Illegal method characters": _NO_REQUEST,
    "Illegal target characters": _NO_REQUEST,
    "illegal header line": _NO_HEADER,
    "continuation line": _NO_HEADER,
    "Illegal header": _NO_HEADER,
    "Missing mandatory Host": "there is no Host header, which HTTP/1.1 needs; send one",
    "Found multiple Host": "there are several Host headers; send one",
    "bad Content-Length": "the Content-Length is no number of bytes; send a whole number",
    "conflicting Content-Length": "there are several Content-Length headers that differ; send one",
    "multiple Transfer-Encoding": _TRANSFERS,
    "Only Transfer-Encoding": _TRANSFERS,
    "illegal chunk header": _NO_CHUNK,
    "malformed chunk": _NO_CHUNK,
    "peer closed connection": "the connection was closed before all of the body had come; send all of it",
    "peer unexpectedly closed": "the connection was closed in the middle of a request; send all of it",
}


class Fault(NamedTuple):
    """status: of HTTP."""

    status: int
    code: str
    detail: str


def fault_of(error: h11.RemoteProtocolError, *, head_bytes_max: int) -> Fault:
    """What is wrong with a request. head_bytes_max: how large a head may be."""
    status, said = error.error_status_hint, str(error)
    if status == 431:
        return head_too_large(head_bytes_max)
    found = next((sentence for begins, sentence in _SENTENCES.items() if said.startswith(begins)), None)
    code = UNSUPPORTED_TRANSFER if status == 501 else MALFORMED
    return Fault(status, code, found or "what came is no request of HTTP/1.1; send one")


def head_too_large(bytes_max: int) -> Fault:
    """A request line and headers that are too long together."""
    return Fault(
        431,
        HEAD_TOO_LARGE,
        f"the request line and the headers have more than {bytes_max} bytes together; send fewer or shorter ones",
    )
