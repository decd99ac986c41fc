"""The `mermaid` format: a flowchart that GitHub, GitLab and many editors show inside Markdown."""

from __future__ import annotations

from conveyord.core.pipeline.drawing.picture import groups
from conveyord.core.pipeline.optimiser import Plan

_BRACKETS = {"source": ("([", "])"), "transform": ("[", "]"), "sink": ("[(", ")]")}
_PLAIN = frozenset(" _.,:'=+/-…")
"""What stands in a label as it is, beside letters and digits. The rest is HTML, Markdown or syntax to someone."""


def draw_mermaid(plan: Plan) -> str:
    """A flowchart from left to right, one subgraph per group of pipelines. What spills is dotted."""
    lines = ["flowchart LR"]
    dashed: list[str] = []
    for index, group in enumerate(groups(plan)):
        lines.append(f"  subgraph g{index}[{_quoted(group.title)}]")
        for box in group.boxes:
            opening, closing = _BRACKETS[box.kind]
            lines.append(f"    n{box.number}{opening}{_quoted(*box.lines)}{closing}")
            if box.dashed:
                dashed.append(f"n{box.number}")
        for arrow in group.arrows:
            line = "-.->" if arrow.spills else "-->"
            label = f"|{_quoted(arrow.label)}|" if arrow.label else ""
            lines.append(f"    n{arrow.source} {line}{label} n{arrow.target}")
        lines.append("  end")
    if dashed:
        lines += ["  classDef deadLetters stroke-dasharray: 5 5", f"  class {','.join(dashed)} deadLetters"]
    return "\n".join([*lines, ""])


def _quoted(*lines: str) -> str:
    return '"' + "<br/>".join(map(_escaped, lines)) + '"'


def _escaped(line: str) -> str:
    """Mermaid writes entities as `#62;`, by number in decimal."""
    return "".join(c if c.isalnum() or c in _PLAIN else f"#{ord(c)};" for c in line)
