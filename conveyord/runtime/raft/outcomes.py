"""What becomes of a proposal: DESIGN.md, section 6. `core/raft/messages.py` has `Dropped` and `NotLeader`."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from conveyord.core.raft.messages import Dropped


class Done(Struct, frozen=True, gc=False):
    """It is committed. index: of its entry, which the leader's state has before it answers a later read. reply: what it
    came to.
    """

    index: int
    reply: bytes


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may have been applied, or may be yet. Propose it again in its session, under the same number."""

    reason: str


Outcome = Done | Dropped | Unknown
"""Dropped: it is in no log, and is safe to propose anew; `NotLeader` says where."""
