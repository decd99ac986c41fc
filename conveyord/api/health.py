"""Whether a node is alive, and whether it is ready. Pure."""

from __future__ import annotations

from typing import NamedTuple

from conveyord.runtime.raft.driver import Standing

LAG_MAX = 1_000
"""Entries that a node may miss and still count as caught up: what is written while it applies is no reason."""


class Look(NamedTuple):
    """One thing that was looked at. sentence: what was found."""

    what: str
    is_well: bool
    sentence: str


def readiness(
    phase: str, waiting: str, standing: Standing | None, disk: str, *, knows_tokens: bool
) -> tuple[Look, ...]:
    """What must hold for a node to be sent requests. It is ready if each of these is well."""
    is_member = phase == "member" and standing is not None
    looks = [Look("cluster", is_member, f"phase {phase}" + (f": {waiting}" if waiting and not is_member else ""))]
    if standing is not None:
        leader = standing.leader
        looks.append(Look("leader", leader is not None, f"{leader} leads" if leader else "no leader is known"))
        lag = standing.commit - standing.applied
        looks.append(Look("state", lag <= LAG_MAX, f"{lag} committed entries are not in the state yet"))
    looks.append(Look("tokens", knows_tokens, "they are known" if knows_tokens else "they were not read yet"))
    looks.append(Look("disk", disk == "ok", disk))
    return tuple(looks)


def text(looks: tuple[Look, ...], *, is_verbose: bool) -> str:
    """What is answered: what is not well, or all that was looked at."""
    wrong = [look for look in looks if not look.is_well]
    shown = looks if is_verbose else wrong
    lines = [f"[{'+' if look.is_well else '-'}] {look.what}: {look.sentence}" for look in shown]
    return "\n".join([*lines, "not ready" if wrong else "ready", ""])
