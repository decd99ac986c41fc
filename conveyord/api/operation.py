"""What an operation is. From the table (`operations.py`) come RPC methods, REST, OpenAPI and the calls of clients."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, unique
from typing import Annotated, Generic, TypeVar

from msgspec import Meta, Struct

from conveyord.core.state.commands import COUNT_MAX
from conveyord.core.state.tokens import ADMIN, OPERATOR, VIEWER

_FIELD = re.compile(r"\{(\w+)(?::path)?\}")
RANKS = {VIEWER: 0, OPERATOR: 1, ADMIN: 2}
"""Who may do something may do what needs less."""


Index = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=600)]


class Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an operation is told. Fields that its path names come from there, others from the query or the JSON body."""


class Read(Request, frozen=True, kw_only=True):
    """What any read may be told.

    stale: answer from what this node has, without asking the leader; the answer may be old. after, wait_seconds: answer
    only once something of that kind was changed behind that index, or the time is over (a blocking query). What was
    changed need not be what is asked for.
    """

    stale: bool = False
    after: Index | None = None
    wait_seconds: Seconds = 0.0


class Reply(Struct, frozen=True, kw_only=True):
    """What is answered. index: of the last entry in the state that the answer reflects."""

    index: int


RequestT = TypeVar("RequestT", bound=Request)
ReplyT = TypeVar("ReplyT", bound=Reply)


@unique
class Where(Enum):
    """Who carries an operation out."""

    HERE = "here"
    """The node that is asked; for what concerns it alone, and for what it proposes or reads by itself."""
    LEADER = "leader"
    """The node that leads: others pass the request on."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation(Generic[RequestT, ReplyT]):
    """One thing that can be asked for. name: `noun.verb`, as RPC and the audit have it.

    method, path: of REST, below `/api/v1`; `{field}` is a part of the path, `{field:path}` all the rest of it.
    is_read: nothing is changed. is_idempotent: asking twice does what asking once does. topics: what a blocking query
    of it waits for.
    """

    name: str
    method: str
    path: str
    request: type[RequestT]
    reply: type[ReplyT]
    role: str
    summary: str
    is_read: bool = True
    is_idempotent: bool = True
    where: Where = Where.HERE
    topics: tuple[str, ...] = ()

    @property
    def rpc_method(self) -> str:
        """What RPC calls it."""
        return f"api.{self.name}"

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields of the request that its path names, in order."""
        return tuple(found[1] for found in _FIELD.finditer(self.path))

    def target(self, request: RequestT) -> str:
        """What a request is about, for the log: what its path names, else its first field."""
        fields = self.path_fields or self.request.__struct_fields__[:1]
        return "/".join(str(getattr(request, field)) for field in fields)
