"""Who may push, what is read of it, and what is answered: the HTTP side of an `http` source that listens."""

from __future__ import annotations

import hmac
import json
import re
from typing import assert_never
from urllib.parse import urlsplit

import trio

from conveyord.core.errors import Retryable, StorageFull
from conveyord.core.hosts import is_loopback
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.http.bodies import ENCODINGS, JSON_TYPES, LINES_TYPES, BodyError, Records, records_of
from conveyord.engine.http.intake import Intake
from conveyord.engine.http.options import HttpConfig
from conveyord.engine.http.push_options import PushConfig
from conveyord.runtime.http_server import Answer, Head, Held, problem
from conveyord.storage.push_journal import Push, Taken, Verdict

INLINE_BYTES = 8 * 1024  # looked at without a thread: a tenth of a millisecond, as much as handing it over costs
KEY_CHARS_MAX = 255
RETRY_AFTER = {"retry-after": "1"}
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class Reception:
    """Admits requests and answers them. token: what senders must give; None if anyone may send."""

    def __init__(
        self, config: HttpConfig, push: PushConfig, context: OperatorContext, intake: Intake, *, token: str | None
    ) -> None:
        self._push = push
        self._context = context
        self._intake = intake
        self._token = None if token is None else token.encode()
        self._body_bytes_max = config.max_body
        self._is_local = is_loopback(urlsplit(config.url).hostname or "")
        self.path = urlsplit(config.url).path or "/"

    def admit(self, head: Head) -> None:
        """Look at a head before its body is read. Raises Declined."""
        self._authenticate(head)
        if head.path != self.path:
            raise problem(404, "NOT_FOUND", f"records are taken at {self.path}")
        if head.method != "POST":
            raise problem(405, "METHOD_NOT_ALLOWED", "send records by POST", headers={"allow": "POST"})
        media = _media_type(head)
        if media not in JSON_TYPES | LINES_TYPES:
            known = ", ".join(sorted(JSON_TYPES | LINES_TYPES))
            raise problem(415, "UNSUPPORTED_MEDIA_TYPE", f"the content type {media!r} is none of {known}")
        if _encoding(head) not in ENCODINGS:
            raise problem(
                415,
                "UNSUPPORTED_ENCODING",
                f"the content encoding {_encoding(head)!r} is none of {', '.join(sorted(ENCODINGS))}",
                headers={"accept-encoding": "gzip, zstd"},
            )
        self._key(head)

    def _authenticate(self, head: Head) -> None:
        if self._token is not None:
            scheme, _, given = head.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._token):
                headers = {"www-authenticate": 'Bearer realm="conveyord"'}
                raise problem(401, "UNAUTHORIZED", "send the token as Authorization: Bearer ...", headers=headers)
        elif self._is_local and not is_loopback(_host(head)):
            # A page in a browser on this machine may have its own name lead here; what it sends looks like ours.
            raise problem(
                421,
                "MISDIRECTED",
                f"the request is for {_host(head)!r}, not for this machine; set push.token behind a proxy",
            )

    def _key(self, head: Head) -> bytes | None:
        name = self._push.key_header
        key = head.headers.get(name.lower())
        if key is None:
            if self._push.require_key:
                raise problem(
                    400, "KEY_MISSING", f"send {name}: with it a request can be sent again, and is taken once"
                )
            return None
        if len(key) > KEY_CHARS_MAX or _KEY.fullmatch(key) is None:
            raise problem(400, "KEY_MALFORMED", f"{name} must be 1 to {KEY_CHARS_MAX} visible ASCII characters")
        return key.encode("ascii")

    async def respond(self, head: Head, held: Held) -> Answer:
        """Take a whole request, and answer once it is where `respond` says. Raises Declined."""
        taken = await self._taken(head, held)
        held.release()  # a request that waits for a commit holds nothing
        match taken.verdict:
            case Verdict.OTHER:
                raise problem(422, "KEY_REUSED", f"a request with other records had this {self._push.key_header}")
            case Verdict.FULL:
                reason = "the sinks are behind, and the journal is full; send again later"
                raise problem(503, "JOURNAL_FULL", reason, headers=RETRY_AFTER)
            case Verdict.NEW | Verdict.KNOWN:
                await self._wait(taken)
                return self._answer(taken)
            case _:
                assert_never(taken.verdict)

    async def _taken(self, head: Head, held: Held) -> Taken:
        """What became of the records of a request. One without any needs no journal, unless its key may be known."""
        try:
            records = await self._records(head, held.body)
        except BodyError as error:
            raise problem(error.status, error.code, error.reason, members=error.members) from error
        key = self._key(head)
        if not records.count and key is None:
            return Taken(Verdict.NEW)
        held.add(len(records.lines))
        try:
            return await self._intake.put(Push(key, records.digest, records.count, records.lines))
        except (StorageFull, Retryable) as error:
            reason = "the disk of the journal takes no more for now; send again later"
            raise problem(503, error.code, reason, headers=RETRY_AFTER) from error

    async def _records(self, head: Head, body: bytes) -> Records:
        encoding, is_lines = _encoding(head), _media_type(head) in LINES_TYPES

        def work() -> Records:
            return records_of(body, encoding=encoding, is_lines=is_lines, bytes_max=self._body_bytes_max)

        if encoding == "identity" and len(body) <= INLINE_BYTES:
            return work()
        return await self._context.in_thread(work)

    async def _wait(self, taken: Taken) -> None:
        if self._push.respond == "accepted":
            return
        with trio.move_on_after(self._push.commit_timeout):
            await self._intake.wait_settled(taken.end)
            return
        raise problem(
            503,
            "NOT_COMMITTED_YET",
            f"the records are safe, but not in every sink after {self._push.commit_timeout:g} s; send the same request "
            "again to wait on",
            headers=RETRY_AFTER,
        )

    def _answer(self, taken: Taken) -> Answer:
        """The same for every time that a request is sent, but for a header."""
        body = {"status": self._push.respond, "records": taken.records, "offset": taken.first}
        headers = {"content-type": "application/json"}
        if taken.verdict is Verdict.KNOWN:
            headers["idempotency-replayed"] = "true"
        return Answer(202 if self._push.respond == "accepted" else 200, json.dumps(body).encode(), headers)


def _media_type(head: Head) -> str:
    return head.headers.get("content-type", "").partition(";")[0].strip().lower()


def _encoding(head: Head) -> str:
    return head.headers.get("content-encoding", "identity").strip().lower() or "identity"


def _host(head: Head) -> str:
    """The name in `Host`, without a port and without the brackets of an IPv6 address."""
    try:
        return urlsplit(f"//{head.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""
