"""A group as an indented tree: what `ascii` falls back to where boxes would be too wide, as with fifty branches."""

from __future__ import annotations

from collections import defaultdict

from conveyord.core.pipeline.drawing.picture import Arrow, Box, Group


def tree(group: Group) -> list[str]:
    """Lines, one per arrow and one per stage without parents. A stage that was shown is referred to by name."""
    boxes = {box.number: box for box in group.boxes}
    children: defaultdict[int, list[Arrow]] = defaultdict(list)
    for arrow in group.arrows:
        children[arrow.source].append(arrow)
    targets = {arrow.target for arrow in group.arrows}
    lines: list[str] = []
    shown: set[int] = set()

    # An explicit stack: a pipeline may be deeper than Python recurses.
    pending = [("", "", box.number) for box in reversed(group.boxes) if box.number not in targets]
    while pending:
        branch, indent, number = pending.pop()
        if number in shown:
            lines.append(f"{branch}{boxes[number].lines[0]}  (above)")
            continue
        shown.add(number)
        lines.append(branch + _described(boxes[number]))
        arrows = children[number]
        for index in reversed(range(len(arrows))):
            last = index == len(arrows) - 1
            label = f" {arrows[index].label} ─▶ " if arrows[index].label else "▶ "
            branch = f"{indent}{'└─' if last else '├─'}{label}"
            pending.append((branch, indent + ("   " if last else "│  "), arrows[index].target))
    return lines


def _described(box: Box) -> str:
    name, *others = box.lines
    return f"{name}  [{'; '.join(others)}]"
