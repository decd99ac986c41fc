"""Who may ask: tokens, known in memory and kept up to date, so that a look at one never waits.

| mode | who | is |
|---|---|---|
| `open` | anyone who reaches a listener, which must be on loopback | admin, `open` in the audit |
| `tokens` | who brings a token of the cluster | what the token says, its id in the audit |
| | who brings the local token of this node | admin at this node, `local` in the audit |

The local token is in a file beside the node's data that only its owner can read, and another one at each start: so
whoever may read the node's data can make the first token, and no other way has to be left open for that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog
import trio

from conveyord.api.codes import TOKEN_EXPIRED, TOKEN_REVOKED, UNAUTHENTICATED, Declined
from conveyord.api.context import Caller
from conveyord.api.token_text import NewToken, Parts, is_secret, new_token, parts_of
from conveyord.cluster.ports import Cluster
from conveyord.core.errors import Retryable
from conveyord.core.state.rows import TOKENS, TokenRow
from conveyord.core.state.tokens import ADMIN
from conveyord.storage.state.reading import Answer, StateView

log = structlog.get_logger(__name__)

Mode = Literal["open", "tokens"]
LOCAL, OPEN = "local", "open"
LOCAL_FILE = "local-token"
WATCH_SECONDS = 60.0  # before the tokens are read again, though nothing was heard of them
LOG_SECONDS = 1.0  # between two lines on tokens that are not accepted, however many come
SEEN_SECONDS = 2.0  # for who has made or revoked a token: longer than a follower lags, unless it is cut off
AGAIN_SECONDS = 0.2  # after the state could not be read: there is none yet, or it is being switched


class Unknown(Declined):
    """A token that is not known here. id: what it says it is."""

    def __init__(self, id_: str) -> None:
        super().__init__(
            UNAUTHENTICATED, "the token is not known here; check it, or have one made: conveyorctl tokens create"
        )
        self.id = id_


def make_local_token(data_dir: Path) -> NewToken:
    """Write a new local token where only the owner of the data reads it, and return it. Blocking. Raises OSError."""
    token = new_token(LOCAL)
    path = data_dir / LOCAL_FILE
    temporary = path.with_name(f"{LOCAL_FILE}.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{token.text}\n")
    temporary.rename(path)
    return token


class Access:
    """For the trio thread. `run` keeps the tokens up to date."""

    def __init__(
        self,
        cluster: Cluster,
        mode: Mode,
        *,
        now_ms: Callable[[], int],
        on_refused: Callable[[str], None],
    ) -> None:
        """now_ms: Unix time. on_refused: is told the code of each token that is not accepted."""
        self.mode = mode
        self.local: NewToken | None = None
        """That of this node, once it was made."""
        self._cluster = cluster
        self._now_ms = now_ms
        self._on_refused = on_refused
        self._rows: dict[str, TokenRow] | None = None
        self._index = -1
        self._news = trio.Event()
        self._looking = trio.Lock()
        self._looked_at = -math.inf
        self._logged_at = -LOG_SECONDS
        self._unlogged = 0

    @property
    def is_ready(self) -> bool:
        """Whether tokens can be told from what is none."""
        return self.mode == "open" or self._rows is not None

    async def run(self) -> None:
        """Follow the tokens of the cluster until cancelled."""
        while True:
            try:
                answer = await self._cluster.read(StateView.tokens, stale=True)
                self._take(answer)
                await self._cluster.wait_beyond((TOKENS,), answer.index, seconds=WATCH_SECONDS)
            except Retryable:
                await trio.sleep(AGAIN_SECONDS)

    async def wait_for(self, index: int) -> None:
        """Wait until the tokens are known as they are at `index`, but not for long: then they will be in a moment."""
        with trio.move_on_after(SEEN_SECONDS):
            while self._index < index:
                await self._news.wait()

    def check(self, bearer: str | None) -> Caller:
        """Who asks. bearer: the token that came along.

        Raises Declined with UNAUTHENTICATED, TOKEN_EXPIRED or TOKEN_REVOKED, and Retryable while tokens cannot be told.
        """
        try:
            return self.find(bearer)
        except Unknown as error:
            if self._rows is None:
                raise Retryable(
                    self._cluster.waiting or "the tokens of the cluster are not known here yet; try again later"
                ) from error
            raise self.refused(error.code, str(error), error.id) from error

    async def check_again(self, bearer: str | None) -> Caller:
        """As `check`, for one that was not known: this node may lag behind who made it, so the leader is asked.

        Those who ask at the same time share one look.
        """
        came_at = trio.current_time()
        async with self._looking:
            if self._looked_at < came_at:
                began = trio.current_time()
                with suppress(Retryable):  # then what is known here has to do
                    self._take(await self._cluster.read(StateView.tokens))
                self._looked_at = began
        return self.check(bearer)

    def find(self, bearer: str | None) -> Caller:
        """As `check`, but one that is not known here raises Unknown, and is not counted."""
        if self.mode == "open":
            return Caller(OPEN, ADMIN)
        if bearer is None:
            raise self.refused(UNAUTHENTICATED, "no token came along; send one as Authorization: Bearer cvd_...")
        parts = parts_of(bearer)
        if parts is None:
            raise self.refused(
                UNAUTHENTICATED, "what came along is no token; one begins with cvd_, and has an id and a secret"
            )
        return self._local(parts) if parts.id == LOCAL else self._of_cluster(parts)

    def refused(self, code: str, message: str, id_: str = "") -> Declined:
        """An error to raise. It is counted, and logged: of many in a second one. id_: what the token says it is."""
        self._on_refused(code)
        self._unlogged += 1
        now = trio.current_time()
        if now - self._logged_at >= LOG_SECONDS:
            log.warning("a token was not accepted", token=id_, code=code, reason=message, others=self._unlogged - 1)
            self._logged_at, self._unlogged = now, 0
        return Declined(code, message)

    def _local(self, parts: Parts) -> Caller:
        local = self.local
        if local is not None and is_secret(parts.secret, local.salt, local.hash):
            return Caller(LOCAL, ADMIN)
        raise self.refused(
            UNAUTHENTICATED,
            f"this is the local token of another node, or of an earlier start; read {LOCAL_FILE} again",
            LOCAL,
        )

    def _take(self, answer: Answer[tuple[TokenRow, ...]]) -> None:
        if answer.index >= self._index:
            self._index, self._rows = answer.index, {row.id: row for row in answer.value}
            self._news.set()
            self._news = trio.Event()

    def _of_cluster(self, parts: Parts) -> Caller:
        row = None if self._rows is None else self._rows.get(parts.id)
        # The same for an id that there is not and for a wrong secret: it tells nobody which ids there are.
        if row is None or not is_secret(parts.secret, row.salt, row.hash):
            raise Unknown(parts.id)
        if row.revoked_at_ms is not None:
            raise self.refused(TOKEN_REVOKED, f"token {row.id} was revoked; have another one made", row.id)
        if row.expires_at_ms is not None and row.expires_at_ms <= self._now_ms():
            raise self.refused(TOKEN_EXPIRED, f"token {row.id} has expired; have another one made", row.id)
        return Caller(row.id, row.role)
