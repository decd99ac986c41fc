"""What an answer means for the stage that asked."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from conveyord.core.errors import BatchError, ConfigError, Retryable
from conveyord.runtime.http_client import HttpClient, Reply

RETRY_AFTER_SECONDS_MAX = 60.0  # a server may ask for a day; a stage that waits longer had better say that it failed
PASSING = frozenset({408, 425, 429})  # beside all of 5xx
DECLINED = frozenset({400, 413, 422})
HINTS = {
    401: "the credentials are missing or wrong; check headers",
    403: "the credentials do not allow this; check headers",
    404: "there is nothing; check url",
    405: "the address does not take this method; check url and method",
    407: "a proxy stands between; conveyord uses none",
    410: "it is gone for good; check url",
    415: "it does not take this format; check format and headers",
}
ABSENT: Final = object()


class Busy(Retryable):
    """The server cannot answer now. after_seconds: how long it asks to be left alone, cut to a minute."""

    def __init__(self, message: str, after_seconds: float) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class Declined(BatchError):
    """The server will not have this request as it is, whoever sends it and whenever."""


def check(client: HttpClient, reply: Reply) -> None:
    """Raise what the status of `reply` means, unless it is 2xx.

    Busy for what may pass, Declined if the content of the request may be at fault, ConfigError for the rest.
    """
    if 200 <= reply.status < 300:
        return
    excerpt = client.excerpt(reply)
    said = f"{reply.address}: answers {reply.status}" + (f" ({excerpt})" if excerpt else "")
    if reply.status in PASSING or reply.status >= 500:
        raise Busy(
            f"{said}; run again once it is well",
            retry_after_seconds(reply.headers.get("retry-after", ""), now_seconds=time.time()),
        )
    if reply.status in DECLINED:
        raise Declined(said)
    raise ConfigError(f"{said}; {HINTS.get(reply.status, 'check url')}")


def retry_after_seconds(text: str, *, now_seconds: float) -> float:
    """What a Retry-After header asks for, in seconds or as a date; 0 if it is absent or unreadable."""
    text = text.strip()
    try:
        wanted = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - now_seconds
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(wanted, 0.0), RETRY_AFTER_SECONDS_MAX)


def parsed(reply: Reply) -> Any:
    """The JSON value of an answer. Raises ConfigError if it is none."""
    try:
        return msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        kind = reply.headers.get("content-type", "no content type")
        raise ConfigError(f"{reply.address}: the answer ({kind}) is not JSON: {error}; check url") from error


def value_at(document: Any, path: str) -> Any:
    """The value of a dotted path of keys in a JSON value, or ABSENT. An empty path is the value itself."""
    for key in path.split(".") if path else ():
        if not isinstance(document, dict) or key not in document:
            return ABSENT
        document = document[key]
    return document
