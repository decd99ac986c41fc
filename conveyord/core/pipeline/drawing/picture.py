"""What a drawing of a plan shows, before any format: boxes, arrows, and what stands on them.

Options are never shown: they may hold secrets, and a picture is pasted into tickets. All text is
legible here (no control characters, no line breaks, shortened), so that a format only has to escape
its own special characters.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from conveyord.core.pipeline.graph import MAIN, Edge, StageKind
from conveyord.core.pipeline.optimiser import Plan, PlanNode

WHEN_COLUMNS_MAX = 40  # a condition is recognised by its beginning; the definition has it in full
NAME_COLUMNS_MAX = 40  # names may have 128 characters, which would push everything else off the screen
USERS_COLUMNS_MAX = 32  # of a list of pipelines, after which they are counted
TITLE_PIPELINES_MAX = 4

DEAD_LETTERS = "dead letters"


@dataclass(frozen=True, slots=True)
class Box:
    """One stage. `lines` is everything to write into it, the name first. dashed: it receives dead letters."""

    number: int
    kind: StageKind
    lines: tuple[str, ...]
    dashed: bool


@dataclass(frozen=True, slots=True)
class Arrow:
    """One edge between boxes, by number. `label` is empty or short; `meaning` is the same in full."""

    source: int
    target: int
    label: str
    meaning: str
    spills: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Pipelines that hang together by what they share, or one pipeline. Boxes stand after their parents."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def groups(plan: Plan) -> tuple[Group, ...]:
    """The pipelines of `plan`, those together that share a stage, in their order."""
    together = _together(plan)
    pipelines, nodes = defaultdict(list), defaultdict(list)
    for pipeline in plan.pipelines:
        pipelines[together[pipeline]].append(pipeline)
    for node in plan.nodes:
        nodes[together[node.pipelines[0]]].append(node)
    one_namespace = len({pipeline.partition("/")[0] for pipeline in plan.pipelines}) == 1
    return tuple(_group(plan, pipelines[first], nodes[first], short=one_namespace) for first in pipelines)


def legible(text: str) -> str:
    """`text` on one line, with runs of white space as one space and every other invisible character as its code."""
    return "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in " ".join(text.split()))


def columns(text: str) -> int:
    """How many columns of a terminal a legible text takes."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def shortened(text: str, columns_max: int) -> str:
    """`text`, with an ellipsis for what goes beyond `columns_max` columns."""
    if columns(text) <= columns_max:
        return text
    room = columns_max - 1
    for end, character in enumerate(text):
        room -= columns(character)
        if room < 0:
            return text[:end].rstrip() + "…"
    return text


def _together(plan: Plan) -> dict[str, str]:
    """For each pipeline the first pipeline that it hangs together with."""
    leader = {pipeline: pipeline for pipeline in plan.pipelines}

    def find(pipeline: str) -> str:
        while leader[pipeline] != pipeline:
            leader[pipeline] = leader[leader[pipeline]]
            pipeline = leader[pipeline]
        return pipeline

    order = {pipeline: place for place, pipeline in enumerate(plan.pipelines)}
    for node in plan.nodes:
        first, *others = sorted({find(pipeline) for pipeline in node.pipelines}, key=order.__getitem__)
        for other in others:
            leader[other] = first
    return {pipeline: find(pipeline) for pipeline in plan.pipelines}


def _group(plan: Plan, pipelines: Sequence[str], nodes: Sequence[PlanNode], *, short: bool) -> Group:
    shown = [legible(pipeline) for pipeline in pipelines[:TITLE_PIPELINES_MAX]]
    more = len(pipelines) - len(shown)
    title = ", ".join(shown) + (f" and {more} more" if more else "")
    boxes = []
    for node in nodes:
        lines = [shortened(legible(text), NAME_COLUMNS_MAX) for text in (node.stage.name, node.stage.type)]
        # In a checked pipeline every sink has an edge, but for the one that dead letters are copied to.
        dashed = node.stage.kind == "sink" and not plan.edges_to(node.number)
        if dashed:
            lines.append(DEAD_LETTERS)
        if len(pipelines) > 1:
            lines.append(_users(node, short=short))
        boxes.append(Box(node.number, node.stage.kind, tuple(lines), dashed))
    arrows = (
        Arrow(
            each.source,
            each.target,
            _label(each.edge, WHEN_COLUMNS_MAX),
            _label(each.edge, None),
            each.edge.on_slow == "spill",
        )
        for node in nodes
        for each in plan.edges_to(node.number)
    )
    return Group(title, tuple(boxes), tuple(arrows))


def _users(node: PlanNode, *, short: bool) -> str:
    """The pipelines that use a node, with the stage's name there if it is another one."""
    shown = ""
    for count, member in enumerate(node.members):
        name = member.pipeline.partition("/")[2] if short else member.pipeline
        alias = "" if member.stage == node.stage.name else f" (as {member.stage})"
        longer = f"{shown}{', ' if shown else ''}{legible(name + alias)}"
        if shown and columns(longer) > USERS_COLUMNS_MAX:
            return f"{shown}, +{len(node.members) - count} more"
        shown = shortened(longer, USERS_COLUMNS_MAX)
    return shown


def _label(edge: Edge, when_columns_max: int | None) -> str:
    parts = [] if edge.output == MAIN else [shortened(legible(edge.output), NAME_COLUMNS_MAX)]
    if edge.when is not None:
        condition = legible(edge.when)
        parts.append("when " + (shortened(condition, when_columns_max) if when_columns_max else condition))
    if edge.otherwise:
        parts.append("otherwise")
    if edge.on_slow == "spill":
        parts.append("spill")
    return ", ".join(parts)
