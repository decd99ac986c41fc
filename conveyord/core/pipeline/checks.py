"""Checks that a graph of stages can run: what no model of a single key can see.

Pure, over the lowered form. A finding names the stage or edge it is about by its index, so that whoever
read the definition can point into it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from conveyord.core.pipeline.graph import MAIN, Edge, PipelineTest, Stage

DEAD_LETTERS = "dead_letters"
"""The key under which a test expects dead letters. A stage of that very name wins."""

LISTED_MAX = 8  # names in a message
NEAR_MAX = 32  # names that a misspelt one is compared with


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with the stage or the edge of that index. `cycle`: the stages that form one."""

    message: str
    stage: int | None = None
    edge: int | None = None
    end: str = ""
    """Which end of the edge it is about: `from`, `to`, `when`, or none in particular."""
    cycle: tuple[str, ...] = ()


def resolve_output(text: str, names: Collection[str]) -> tuple[str, str]:
    """The stage and the output that `text` names: `stage`, or `stage.output`. A stage of that very name wins.

    An unknown name comes back as it is, with the main output.
    """
    stage, dot, output = text.rpartition(".")
    if text in names or not dot or stage not in names:
        return text, MAIN
    return stage, output


def check_graph(
    stages: Sequence[Stage],
    edges: Sequence[Edge],
    *,
    outputs: Mapping[str, Collection[str]],
    dead_letter_sink: str | None = None,
) -> list[Finding]:
    """Everything that keeps the graph from running.

    outputs: the extra outputs of each stage by name; a stage that is not in it is not asked for its
    outputs. Edges are looked at only if names are unique, and stages that nothing reaches are looked for
    only if the edges are sound, because one mistake would make others.
    """
    found = list(_twice(stages))
    if found:
        return found
    by_name = {stage.name: stage for stage in stages}
    found += _ends(by_name, edges, outputs=outputs, dead_letter_sink=dead_letter_sink)
    found += _repeated(edges)
    found += _lonely_otherwise(edges)
    cycle = _cycle(stages, edges)
    if cycle is not None:
        found.append(cycle)
    if not found:
        found += _unreachable(stages, edges, dead_letter_sink=dead_letter_sink)
    return found


def _twice(stages: Sequence[Stage]) -> Iterable[Finding]:
    seen: set[str] = set()
    for index, stage in enumerate(stages):
        if stage.name in seen:
            yield Finding(f"two stages are named {stage.name!r}; positions and counts are kept by name", stage=index)
        seen.add(stage.name)


def _ends(
    stages: Mapping[str, Stage],
    edges: Sequence[Edge],
    *,
    outputs: Mapping[str, Collection[str]],
    dead_letter_sink: str | None,
) -> Iterable[Finding]:
    for index, edge in enumerate(edges):
        source, target = stages.get(edge.source), stages.get(edge.target)
        if source is None:
            yield Finding(_unknown(edge.source, stages), edge=index, end="from")
        elif source.kind == "sink":
            yield Finding(f"{source.name!r} is a sink; no edge leaves a sink", edge=index, end="from")
        elif edge.output != MAIN and edge.output not in outputs.get(source.name, (edge.output,)):
            message = _unknown_output(source, edge.output, outputs[source.name])
            yield Finding(message, edge=index, end="from")
        if target is None:
            yield Finding(_unknown_target(edge.target, stages), edge=index, end="to")
        elif target.kind == "source":
            yield Finding(f"{target.name!r} is a source; no edge enters a source", edge=index, end="to")
        elif target.name == dead_letter_sink:
            message = f"{target.name!r} is the sink of dlq, which receives bad records only; use another sink for rows"
            yield Finding(message, edge=index, end="to")


def listed(names: Collection[str]) -> str:
    """`is a`, `are a, b`, or `are a, b, ... (20 in all)`."""
    first = ", ".join(list(names)[:LISTED_MAX])
    if len(names) > LISTED_MAX:
        return f"are {first}, ... ({len(names)} in all)"
    return f"{'is' if len(names) == 1 else 'are'} {first}"


def _unknown(name: str, stages: Mapping[str, Stage]) -> str:
    # Without looking at words that cannot be close: a graph may have a thousand misspelt edges.
    near = [known for known in stages if abs(len(known) - len(name)) <= 2 and known[:1] == name[:1]]
    close = get_close_matches(name, near[:NEAR_MAX], n=1)
    if close:
        return f"no stage is named {name!r}; did you mean {close[0]!r}?"
    return f"no stage is named {name!r}; the stages {listed(stages)}"


def _unknown_target(name: str, stages: Mapping[str, Stage]) -> str:
    stage, output = resolve_output(name, stages)
    return _unknown(name, stages) if output == MAIN else f"an edge goes to a stage, not to its output; write {stage!r}"


def _unknown_output(stage: Stage, output: str, known: Collection[str]) -> str:
    if not known:
        return f"{stage.type} has no output {output!r}, only its main one; write {stage.name!r}"
    listed = ", ".join(f"{stage.name}.{name}" for name in sorted(known))
    return f"{stage.type} has no output {output!r}; its outputs are {stage.name} and {listed}"


def _repeated(edges: Sequence[Edge]) -> Iterable[Finding]:
    seen: set[tuple[str, str, str]] = set()
    for index, edge in enumerate(edges):
        key = (edge.source, edge.output, edge.target)
        if key in seen:
            source = edge.source if edge.output == MAIN else f"{edge.source}.{edge.output}"
            message = f"a second edge from {source!r} to {edge.target!r}; join their conditions with OR in one edge"
            yield Finding(message, edge=index)
        seen.add(key)


def _lonely_otherwise(edges: Sequence[Edge]) -> Iterable[Finding]:
    conditional = {(edge.source, edge.output) for edge in edges if edge.when is not None}
    for index, edge in enumerate(edges):
        if edge.otherwise and (edge.source, edge.output) not in conditional:
            message = f"'otherwise' needs another edge from {edge.source!r} with 'when'; remove it to take every row"
            yield Finding(message, edge=index)


def _cycle(stages: Sequence[Stage], edges: Sequence[Edge]) -> Finding | None:
    """The first cycle, at the edge that closes it. What enters a source or leaves a sink is wrong already."""
    entered = {stage.name for stage in stages if stage.kind != "source"}
    left_from = {stage.name for stage in stages if stage.kind != "sink"}
    every, edges = edges, [edge for edge in edges if edge.target in entered and edge.source in left_from]
    ordered = {stage.name for stage in in_order(stages, edges)}
    left = {stage.name for stage in stages} - ordered
    if not left:
        return None
    # What is left lies on a cycle or behind one. Walking against the edges stays within it, so it must close.
    before = {edge.target: edge.source for edge in reversed(edges) if edge.source in left and edge.target in left}
    name = next(stage.name for stage in stages if stage.name in left)
    walked: list[str] = []
    while name not in walked:
        walked.append(name)
        name = before[name]
    loop = [*walked[walked.index(name) :], name][::-1]
    # Said from the stage that comes first in the definition, so that the message does not change with the walk.
    order = {stage.name: index for index, stage in enumerate(stages)}
    start = min(range(len(loop) - 1), key=lambda index: order[loop[index]])
    path = (*loop[start:-1], *loop[:start], loop[start])
    closing = next(index for index, edge in enumerate(every) if (edge.source, edge.target) == (path[-2], path[-1]))
    message = f"the edges form a cycle: {' -> '.join(path)}; rows would go round for ever"
    return Finding(message, edge=closing, cycle=path)


def _unreachable(stages: Sequence[Stage], edges: Sequence[Edge], *, dead_letter_sink: str | None) -> Iterable[Finding]:
    fed = _reached({stage.name for stage in stages if stage.kind == "source"}, edges)
    backwards = [Edge(edge.target, edge.source) for edge in edges]
    drained = _reached({stage.name for stage in stages if stage.kind == "sink"}, backwards)
    for index, stage in enumerate(stages):
        if stage.name == dead_letter_sink:
            continue
        if stage.name not in fed:
            message = f"no source reaches {stage.name!r}; add an edge to it, or remove it"
            yield Finding(message, stage=index)
        elif stage.name not in drained:
            message = f"{stage.name!r} reaches no sink; add an edge from it, or remove it"
            yield Finding(message, stage=index)


def _reached(starts: set[str], edges: Sequence[Edge]) -> set[str]:
    following: dict[str, list[str]] = {}
    for edge in edges:
        following.setdefault(edge.source, []).append(edge.target)
    reached, waiting = set(starts), deque(starts)
    while waiting:
        for name in following.get(waiting.popleft(), ()):
            if name not in reached:
                reached.add(name)
                waiting.append(name)
    return reached


def in_order(stages: Sequence[Stage], edges: Sequence[Edge]) -> tuple[Stage, ...]:
    """The stages so that every edge points forward; otherwise as they come. Stages on or behind a cycle are left out.

    Names must be unique. Edges that name unknown stages are passed over.
    """
    by_name = {stage.name: index for index, stage in enumerate(stages)}
    after: dict[int, list[int]] = {}
    missing = [0] * len(stages)
    for edge in edges:
        if edge.source in by_name and edge.target in by_name:
            after.setdefault(by_name[edge.source], []).append(by_name[edge.target])
            missing[by_name[edge.target]] += 1
    ready = sorted((index for index, count in enumerate(missing) if count == 0), reverse=True)
    ordered = []
    while ready:
        index = ready.pop()
        ordered.append(stages[index])
        for target in after.get(index, ()):
            missing[target] -= 1
            if missing[target] == 0:
                ready.append(target)
                ready.sort(reverse=True)
    return tuple(ordered)


def unknown_in_test(
    test: PipelineTest,
    stages: Sequence[Stage],
    outputs: Mapping[str, Collection[str]],
    *,
    keeps_dead_letters: bool = False,
) -> list[tuple[str, str, str]]:
    """What a test names that is not there: `given` or `expect`, the key, and a sentence.

    keeps_dead_letters: the pipeline has a `dlq`, so there are dead letters to expect.
    """
    by_name = {stage.name: stage for stage in stages}
    found = []
    for key in test.given:
        if key not in by_name:
            stage, output = resolve_output(key, by_name)
            inside = f"rows are given to a stage, not to its output; write {stage!r}"
            found.append(("given", key, _unknown(key, by_name) if output == MAIN else inside))
    for key in test.expect:
        name, output = resolve_output(key, by_name)
        if name == DEAD_LETTERS and name not in by_name:
            if not keeps_dead_letters:
                found.append(("expect", key, "the pipeline has no 'dlq', so a bad record stops it; add dlq: {}"))
        elif name not in by_name:
            found.append(("expect", key, _unknown(name, by_name)))
        elif output != MAIN and output not in outputs.get(name, (output,)):
            found.append(("expect", key, _unknown_output(by_name[name], output, outputs[name])))
    return found
