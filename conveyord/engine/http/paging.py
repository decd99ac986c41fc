"""Where a poll of an HTTP address has got to, and where a page of its answer leads. Pure.

A *bookmark* is what a source stores with its position: the next request, and at which offset (the number of records
taken so far) that request's page begins. From both follows how many records of the page were taken before, so that
reading goes on within a page, and a last page that grows is read on from where it ended.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
from pydantic import Field

from conveyord.core.errors import ConfigError, Corrupt
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.http.answers import ABSENT, value_at
from conveyord.runtime.http_client import Reply

VERSION = 1
EDGE_MAX = 1_000  # records with the newest value of a cursor that are known again
DIGEST_CHARACTERS = 16  # tells apart the records of one edge, or two answers of one address
KEYS_SHOWN_MAX = 10  # of an answer that is another than was expected
LINK_HEADER = "Link"
_NEXT = re.compile(r'<([^>]*)>[^,<]*;\s*rel\s*=\s*"?next"?', re.IGNORECASE)
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # between values; within a string JSON has neither


class CursorConfig(OperatorConfig):
    """A value that says from where on the server is to answer: taken from its answers, sent with the next request."""

    param: str | None = Field(
        default=None, min_length=1, description="The query parameter that takes it. Without it there is no cursor."
    )
    path: str | None = Field(
        default=None, description="Where an answer holds the next value. None there, or the same: the last page."
    )
    from_record: str | None = Field(
        default=None,
        description="The field of a record whose value in the last record of a page is the next one. Records must come "
        "in its order; whether the server takes it as from there or after there makes no difference.",
    )
    initial: str | int | None = Field(
        default=None, description="The first value; without it the first request has none."
    )


@dataclass(frozen=True, slots=True)
class Bookmark:
    """See this module.

    start: the offset at which the page begins. cursor and link: the request for it. newest: the value of
    `cursor.from_record` in the last record, and edge: digests of the records that have it. etag, modified and
    digest: of the answer whose records up to the offset were taken, if all of them were.
    """

    start: int = 0
    cursor: str | None = None
    link: str | None = None
    newest: str | None = None
    edge: tuple[str, ...] = ()
    etag: str | None = None
    modified: str | None = None
    digest: str | None = None

    def encoded(self, schema: str) -> str:
        """This bookmark and the schema that goes with it, as text."""
        fields = {name: value for name, value in asdict(self).items() if value}
        return json.dumps({"version": VERSION, "schema": schema, **fields}, separators=(",", ":"))


def decoded(text: str, *, where: str) -> tuple[Bookmark, str]:
    """A bookmark and the schema from `Bookmark.encoded`. Raises Corrupt for anything else."""
    try:
        body = json.loads(text)
        if body.pop("version") != VERSION:
            raise ValueError("another version")
        schema = body.pop("schema")
        return Bookmark(**{**body, "edge": tuple(body.pop("edge", ()))}), schema
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(
            f"{where}: what the source stored with its position cannot be read ({error!r}); upgrade conveyord if a "
            "newer one wrote it"
        ) from error


@dataclass(frozen=True, slots=True)
class Page:
    """One answer. records: each on one line, in order, those at the edge of the page before left out: `known`."""

    reply: Reply
    records: Sequence[bytes]
    known: int = 0


NUL_BYTES_SEARCHED = 4  # JSON begins with ASCII: in UTF-16 or UTF-32 one of so many bytes is zero, in UTF-8 none


def page_of(reply: Reply, records: str | None, at: Bookmark) -> Page:
    """Take an answer apart. records: the dotted path of its list. Raises ConfigError if it is not there."""
    if b"\0" in reply.body[:NUL_BYTES_SEARCHED]:
        raise ConfigError(
            f"{reply.address}: the answer is UTF-16 or UTF-32, or no text; JSON is read in UTF-8 alone, so ask for "
            "that, such as by headers (Accept-Charset: utf-8)"
        )
    text = _raw_at(reply, records or "") if reply.body.strip() else b"null"
    if text is None:
        outer = _parsed(reply, reply.body, Any)
        keys = ", ".join(sorted(outer)[:KEYS_SHOWN_MAX] if isinstance(outer, dict) else ()) or "none"
        raise ConfigError(f"{reply.address}: nothing at records ({records!r}); the outermost keys are: {keys}")
    if text.startswith(b"["):
        rows = [bytes(row).translate(_ONE_LINE).strip() for row in _parsed(reply, text, list[msgspec.Raw])]
    elif text.startswith(b"{"):
        rows = [text.translate(_ONE_LINE)]
    elif text == b"null":
        rows = []
    else:
        where = "the answer" if records is None else f"what stands at records ({records!r})"
        raise ConfigError(f"{reply.address}: {where} is neither a list nor an object; check url and records")
    count = len(rows)
    if at.edge:
        known = set(at.edge)
        rows = [row for row in rows if digest_of(row) not in known]
    return Page(reply, rows, count - len(rows))


def after(
    page: Page,
    at: Bookmark,
    *,
    taken: int,
    cursor: CursorConfig | None,
    next_link: str | None,
    resolve: Callable[[str], str],
) -> tuple[Bookmark, bool]:
    """The bookmark behind all records of `page`, which `at` led to, and whether there are further pages now.

    taken: how many records of that page were taken before; it may have lost some since, and the next page begins
    behind those all the same. resolve: makes a link absolute, and fit to be stored.
    """
    end, is_moved = at.start + max(len(page.records), taken), False
    if cursor is not None and cursor.from_record is not None:
        newest, edge = _newest(page, at, cursor.from_record)
        is_moved = bool(page.records)
        at = replace(at, newest=newest, edge=edge)
    link = None if next_link is None else _link(page, next_link)
    link = None if link is None else resolve(link)
    if link is not None and link != at.link:
        return _moved(at, end, cursor=at.cursor, link=link), True
    if is_moved:
        return _moved(at, end, cursor=at.newest, link=None), next_link is None
    if cursor is not None and cursor.path is not None:
        value = _cursor_at(page, cursor.path)
        if value is not None and value != at.cursor:
            return _moved(at, end, cursor=value, link=None), True
    headers = page.reply.headers
    at = replace(at, etag=headers.get("etag"), modified=headers.get("last-modified"))
    return (with_digest(at, page) if cursor is None and next_link is None else at), False


def with_digest(at: Bookmark, page: Page) -> Bookmark:
    """`at`, and which answer it is within."""
    return replace(at, digest=digest_of(page.reply.body))


def _moved(at: Bookmark, start: int, *, cursor: str | None, link: str | None) -> Bookmark:
    return Bookmark(start=start, cursor=cursor, link=link, newest=at.newest, edge=at.edge)


def cursor_text(value: Any, address: str, path: str) -> str | None:
    """A cursor as it is sent. None if there is none: null, empty or absent."""
    if value is ABSENT or value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{address}: what stands at {path!r} is no text or number, so it is no cursor")
    return str(value)


def digest_of(content: bytes) -> str:
    """Tells apart what a source may see again."""
    return hashlib.sha256(content).hexdigest()[:DIGEST_CHARACTERS]


def _newest(page: Page, at: Bookmark, field: str) -> tuple[str | None, tuple[str, ...]]:
    """The newest value of the cursor's field, and which records have it."""
    newest: str | None = None
    edge: list[str] = []
    for record in reversed(page.records):
        value = cursor_text(_field(record, field), page.reply.address, field)
        if value is None:
            continue
        if newest is None:
            newest, edge = value, list(at.edge) if value == at.newest else []
        if value != newest or len(edge) >= EDGE_MAX:
            break
        edge.append(digest_of(record))
    if newest is not None:
        return newest, tuple(edge)
    if page.records:
        raise ConfigError(f"{page.reply.address}: no record has {field!r}; check cursor.from_record")
    return at.newest, at.edge


def _field(record: bytes, field: str) -> Any:
    try:
        return value_at(msgspec.json.decode(record), field)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ABSENT  # the decoder says what is wrong with it


def _link(page: Page, next_link: str) -> str | None:
    if next_link.lower() == LINK_HEADER.lower():
        found = _NEXT.search(page.reply.headers.get("link", ""))
        return found.group(1) if found else None
    value = _value_at(page.reply, next_link)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{page.reply.address}: what stands at next_link ({next_link!r}) is no text, so no address")
    return value


def _cursor_at(page: Page, path: str) -> str | None:
    return cursor_text(_value_at(page.reply, path), page.reply.address, path)


def _value_at(reply: Reply, path: str) -> Any:
    """The value at a dotted path of an answer; None if there is none."""
    raw = _raw_at(reply, path)
    return None if raw is None else _parsed(reply, raw, Any)


def _raw_at(reply: Reply, path: str) -> bytes | None:
    """The bytes of the value at a dotted path, exactly as they came; None if there is none.

    Only what leads there becomes Python objects: an answer may be large.
    """
    text = reply.body.strip().removeprefix(codecs.BOM_UTF8)
    for key in path.split(".") if path else ():
        if not text.startswith(b"{"):
            return None
        level = _parsed(reply, text, dict[str, msgspec.Raw])
        if key not in level:
            return None
        text = bytes(level[key])
    return text


def _parsed(reply: Reply, text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        media = reply.headers.get("content-type", "no content type")
        raise ConfigError(
            f"{reply.address}: the answer ({media}) is not JSON of the expected shape: {error}; check url and records"
        ) from error
