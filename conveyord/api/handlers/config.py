"""Configuration entries."""

from __future__ import annotations

from functools import partial

from msgspec import UNSET

from conveyord.api.codes import Declined
from conveyord.api.context import Caller, Context
from conveyord.api.messages import (
    Changed,
    ConfigDeleteRequest,
    ConfigEntries,
    ConfigEntry,
    ConfigGet,
    ConfigList,
    ConfigPutRequest,
    OneConfigEntry,
)
from conveyord.core.state.commands import ConfigDelete, ConfigPut
from conveyord.core.state.names import wrong_key
from conveyord.core.state.replies import INVALID, NOT_FOUND
from conveyord.core.state.rows import ConfigRow
from conveyord.storage.state.reading import Answer, Page, StateView

UNREACHABLE = frozenset({".", ".."})
"""Parts of a path that mean something else to most programs."""


async def get(context: Context, _: Caller, request: ConfigGet) -> OneConfigEntry:
    """See `ConfigGet`."""
    if wrong := wrong_key(request.key):
        raise Declined(INVALID, wrong.message, field="key")
    answer = await context.cluster.read(partial(_entry, key=request.key), stale=request.stale)
    if answer.value is None:
        raise Declined(NOT_FOUND, f"there is no configuration entry {request.key}; write it first", index=answer.index)
    return OneConfigEntry(index=answer.index, entry=_shown(answer.value, values=True))


async def list_(context: Context, _: Caller, request: ConfigList) -> ConfigEntries:
    """See `ConfigList`."""
    answer = await context.cluster.read(partial(_page, request=request), stale=request.stale)
    entries = tuple(_shown(row, values=request.values) for row in answer.value.items)
    return ConfigEntries(index=answer.index, entries=entries, more=answer.value.more)


async def put(context: Context, caller: Caller, request: ConfigPutRequest) -> Changed:
    """See `ConfigPutRequest`.

    Some names that the state would take are refused here, so that nodes of all versions take the same commands.
    """
    if not UNREACHABLE.isdisjoint(request.key.split("/")):
        raise Declined(
            INVALID,
            f"a part of the key {request.key[:80]!r} is `.` or `..`, which browsers and proxies take out of a path; "
            "call that part something else",
            field="key",
        )
    command = ConfigPut(request.key, request.value, request.expect_index)
    return await context.changed(command, caller)


async def delete(context: Context, caller: Caller, request: ConfigDeleteRequest) -> Changed:
    """See `ConfigDeleteRequest`."""
    return await context.changed(ConfigDelete(request.key, request.expect_index), caller)


def _entry(view: StateView, *, key: str) -> Answer[ConfigRow | None]:
    return view.config(key)


def _page(view: StateView, *, request: ConfigList) -> Answer[Page[ConfigRow]]:
    return view.config_page(request.prefix, after=request.behind, limit=request.limit)


def _shown(row: ConfigRow, *, values: bool) -> ConfigEntry:
    return ConfigEntry(
        key=row.key,
        created=row.created,
        changed=row.changed,
        size=row.size,
        value=row.value if values else UNSET,
    )
