"""The `dot` format, for Graphviz: one cluster per group of pipelines."""

from __future__ import annotations

from conveyord.core.pipeline.drawing.picture import Box, groups
from conveyord.core.pipeline.optimiser import Plan

_SHAPES = {"source": "box", "transform": "box", "sink": "cylinder"}


def draw_dot(plan: Plan) -> str:
    """A digraph from left to right. Dead-letter sinks and edges that spill are dashed."""
    lines = [
        "digraph conveyord {",
        "  rankdir=LR;",
        '  node [fontname="sans-serif"];',
        '  edge [fontname="sans-serif"];',
    ]
    for index, group in enumerate(groups(plan)):
        lines += [f"  subgraph cluster_{index} {{", f"    label={_quoted(group.title)};"]
        lines += [f"    n{box.number} [label={_quoted(*box.lines)}, {_style(box)}];" for box in group.boxes]
        for arrow in group.arrows:
            attributes = [f"label={_quoted(arrow.label)}"] if arrow.label else []
            if arrow.meaning != arrow.label:
                attributes.append(f"tooltip={_quoted(arrow.meaning)}")
            if arrow.spills:
                attributes.append('style="dashed"')
            shown = f" [{', '.join(attributes)}]" if attributes else ""
            lines.append(f"    n{arrow.source} -> n{arrow.target}{shown};")
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _style(box: Box) -> str:
    styles = ["rounded"] * (box.kind == "source") + ["dashed"] * box.dashed
    return f"shape={_SHAPES[box.kind]}" + (f', style="{",".join(styles)}"' if styles else "")


def _quoted(*lines: str) -> str:
    """A quoted string of several lines. Graphviz reads backslash escapes in it, and HTML entities as well."""
    escaped = (line.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
