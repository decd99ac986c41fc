"""What happened: the audit, and what watchers are told."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from conveyord.api.codes import BEHIND, COMPACTED, Declined
from conveyord.api.context import Caller, Context
from conveyord.api.messages import Audit, AuditEntry, AuditList, Event, Events, EventsAfter
from conveyord.core.state.replies import INVALID
from conveyord.core.state.rows import TOPICS, AuditRow
from conveyord.storage.state import watching
from conveyord.storage.state.reading import Answer, Page, StateView


class Cursor(NamedTuple):
    """Where a watcher is. history: empty if it has none yet."""

    through: int
    history: str
    topics: tuple[str, ...]


async def audit(context: Context, _: Caller, request: AuditList) -> Audit:
    """See `AuditList`."""
    answer = await context.cluster.read(partial(_audited, request=request), stale=request.stale)
    entries = tuple(AuditEntry(**row._asdict()) for row in answer.value.items)
    return Audit(index=answer.index, entries=entries, more=answer.value.more)


async def after(context: Context, caller: Caller, request: EventsAfter) -> Events:
    """See `EventsAfter`."""
    cursor = Cursor(request.after, request.history, topics_of(request.topics))
    found = await next_events(context, cursor, limit=request.limit)
    if not found.events and request.wait_seconds > 0:
        await context.wait_beyond(caller, cursor.topics, found.through, seconds=request.wait_seconds)
        found = await next_events(context, cursor._replace(through=found.through), limit=request.limit)
    return found


async def next_events(context: Context, cursor: Cursor, *, limit: int) -> Events:
    """What follows a cursor: perhaps nothing yet. Raises Declined with COMPACTED or BEHIND, and what `read` raises."""
    question = partial(_watched, cursor=cursor, limit=limit)
    answer = await context.cluster.read(question, stale=True)
    if isinstance(answer.value, watching.Behind):
        # This node may only lag behind the one that gave the cursor: look again, once it has what the leader has.
        answer = await context.cluster.read(question)
    found = answer.value
    if isinstance(found, watching.Compacted):
        raise Declined(
            COMPACTED,
            f"events behind {cursor.through} are not kept any more, only those behind {found.oldest}; read what is "
            "there now, and go on from the index of that",
            index=found.index,
            members={"index": found.index, "history": found.history, "oldest": found.oldest},
        )
    if isinstance(found, watching.Behind):
        raise Declined(
            BEHIND,
            f"the cursor {cursor.through} is of another history than the state, or beyond it (it is at {found.index}): "
            "a backup was restored, or the cursor is of another cluster; read what is there now, and go on from the "
            f"index of that, with history {found.history}",
            index=found.index,
            members={"index": found.index, "history": found.history},
        )
    events = tuple(Event(**event._asdict()) for event in found.events)
    return Events(index=found.index, through=found.through, history=found.history, events=events)


def topics_of(text: str) -> tuple[str, ...]:
    """Topics that are joined by commas; all of them for an empty text. Raises Declined for one that there is not."""
    if not text:
        return TOPICS
    topics = tuple(dict.fromkeys(text.split(",")))
    if unknown := set(topics).difference(TOPICS):
        raise Declined(
            INVALID, f"there is no topic {min(unknown)!r} to watch; there are {', '.join(TOPICS)}", field="topics"
        )
    return topics


def _audited(view: StateView, *, request: AuditList) -> Answer[Page[AuditRow]]:
    return view.audit(before=request.before, limit=request.limit)


def _watched(view: StateView, *, cursor: Cursor, limit: int) -> Answer[watching.Watched]:
    found = view.events_after(cursor.through, cursor.topics, history=cursor.history or None, limit=limit)
    return Answer(found.index, found)
