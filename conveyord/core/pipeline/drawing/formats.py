"""The formats that a plan can be drawn in, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from conveyord.core.pipeline.drawing.boxes import draw_ascii
from conveyord.core.pipeline.drawing.dot import draw_dot
from conveyord.core.pipeline.drawing.mermaid import draw_mermaid
from conveyord.core.pipeline.drawing.svg import draw_svg
from conveyord.core.pipeline.optimiser import Plan

FORMATS: Mapping[str, Callable[[Plan], str]] = MappingProxyType(
    {"ascii": draw_ascii, "dot": draw_dot, "mermaid": draw_mermaid, "svg": draw_svg}
)
"""Each gives one document that ends in a line feed, and is deterministic: equal plans give equal text."""
