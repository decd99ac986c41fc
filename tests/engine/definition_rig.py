"""Random definitions of every form, written as people write them: any order, style, spelling and comments."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from conveyord.engine.registry import GROUP, Registry

SAMPLES = Path(__file__).resolve().parents[1] / "data" / "errors"
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
TEXTS = st.sampled_from(["a", "x y", "it's", 'say "hi"', "a: b", "# no comment", "- a", "ü", "5", "true", "", "a\nb\n"])


def registry() -> Registry:
    """What is installed, and operators with every kind of option under the type `sample`."""
    if str(SAMPLES) not in sys.path:
        sys.path.insert(0, str(SAMPLES))
    samples = {"source": "SampleSource", "transform": "SampleTransform", "sink": "SampleSink"}
    points = [EntryPoint(f"{kind}.sample", f"sample_operators:{name}", GROUP) for kind, name in samples.items()]
    return Registry.of([*(point for point in entry_points(group=GROUP) if point.dist.name == "conveyord"), *points])


# ------------------------------------------------------------------------------ values


def _some(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


SIZES = st.sampled_from([1024, "64KiB", "1.5MiB", "10MB", " 8MiB", "${SIZE:4MiB}"])
DURATIONS = st.sampled_from(["30s", "1h30m", "250ms", "1.5d", "${EVERY:5s}"])
COUNTS = st.sampled_from([1, 100])
SOURCES = st.one_of(
    _some(
        {"type": st.just("sample"), "path": TEXTS},
        {"block": SIZES, "header": st.booleans(), "compression": st.just("zstd")},
    ),
    _some(
        {"type": st.just("file_jsonl"), "path": st.just("in/*.jsonl")},
        {"batch_rows": COUNTS, "block_bytes": st.sampled_from(["64KiB", "8MiB"])},
    ),
    _some(
        {"type": st.just("file_csv"), "path": TEXTS},
        {"types": st.dictionaries(NAMES, st.sampled_from(["long", "date"]))},
    ),
)
TRANSFORMS = st.one_of(
    _some({"type": st.just("sample"), "when": TEXTS}, {"ratio": st.sampled_from([1, 0.5])}),
    _some({"type": st.just("passthrough")}, {}),
    _some({"type": st.just("json_flatten")}, {"lists": st.sampled_from(["keep", ["a", "b"]]), "max_depth": st.just(3)}),
    _some({"type": st.just("sql_transform"), "query": st.just("SELECT *\n  FROM input_data\n")}, {}),
)
_SAMPLE_SINK = {
    "commit": _some({}, {"rows": COUNTS, "every": DURATIONS}),
    "partition_by": st.lists(TEXTS, max_size=2),
    "target": st.sampled_from([5, "auto"]),
    "properties": st.dictionaries(NAMES, TEXTS, max_size=2),
    "token": st.sampled_from(["env:TOKEN", "literal"]),
    "catalog": st.sampled_from(["lake", {"uri": "x", "token": "y"}]),
}
SINKS = st.one_of(
    _some({"type": st.just("sample"), "table": TEXTS}, _SAMPLE_SINK),
    _some({"type": st.just("sample"), "table_name": TEXTS}, _SAMPLE_SINK),
    _some(
        {"type": st.just("iceberg"), "table": st.just("a.b")}, {"commit": _some({}, {"rows": COUNTS, "bytes": SIZES})}
    ),
    _some({"type": st.just("stdout_pretty")}, {"limit": st.sampled_from([None, 5])}),
)
POLICIES = st.one_of(
    _some({}, {"initialDelayMs": st.just(5), "max_delay_ms": st.just(20_000), "multiplier": st.just(1.5)}),
    _some({}, {"initial_delay_ms": st.just(5), "type": st.just("exponentialBackoff")}),
)
DEAD_LETTERS = st.one_of(
    _some({}, {"maxRetries": COUNTS, "retryPolicy": POLICIES}),
    _some({}, {"max_retries": COUNTS, "retry_policy": POLICIES}),
    _some({}, {"retry_backoff_ms": st.just(5), "maxRetryBackoffMs": st.just(500)}),
)
BODY = {
    "mode": st.sampled_from(["stream", "batch"]),
    "enabled": st.booleans(),
    "dlq": DEAD_LETTERS,
}
METADATA = _some(
    {"name": NAMES},
    {"namespace": NAMES, "labels": st.dictionaries(NAMES, TEXTS, max_size=2), "annotations": st.just({"a": "b"})},
)


@st.composite
def _named(draw: st.DrawFn, stages: st.SearchStrategy[dict[str, Any]], name: str) -> dict[str, Any]:
    return {**draw(stages), draw(st.sampled_from(["name", "id"])): name}


@st.composite
def _graphs(draw: st.DrawFn) -> dict[str, Any]:
    steps = [draw(_named(TRANSFORMS, f"t{index}")) for index in range(draw(st.integers(0, 2)))]
    sinks = [draw(_named(SINKS, f"s{index}")) for index in range(draw(st.integers(1, 2)))]
    line = ["in", *(f"t{index}" for index in range(len(steps)))]
    edges: list[Any] = [list(pair) for pair in pairwise(line)]
    for index in range(len(sinks)):
        spelling = draw(st.sampled_from(["on_slow", "onSlow"]))
        more = {"when": "a > 5", spelling: "block"}
        edges.append(draw(st.sampled_from([[line[-1], f"s{index}"], {"from": line[-1], "to": f"s{index}", **more}])))
    body = draw(_some({}, BODY))
    return {**body, "sources": [draw(_named(SOURCES, "in"))], "transforms": steps, "sinks": sinks, "edges": edges}


LINES = _some({"source": SOURCES, "sink": SINKS}, {**BODY, "steps": st.lists(TRANSFORMS, max_size=3)})


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    """A valid document of any form, its keys in any order."""
    form = draw(st.sampled_from(["linear", "graph", "bare", "Source", "Transform", "Sink"]))
    if form == "bare":
        return shuffled(draw, {"name": draw(NAMES), **draw(_graphs())})
    if form in ("linear", "graph"):
        kind, spec = "Pipeline", draw(LINES if form == "linear" else _graphs())
    else:
        kind, spec = form, draw({"Source": SOURCES, "Transform": TRANSFORMS, "Sink": SINKS}[form])
        options = {key: value for key, value in spec.items() if key != "type"}
        if options and draw(st.booleans()):
            spec = {"type": spec["type"], "config": options}
    document = {"apiVersion": "conveyor.etl/v1", "kind": kind, "metadata": draw(METADATA), "spec": spec}
    return shuffled(draw, document)


def shuffled(draw: st.DrawFn, value: Any) -> Any:
    """`value` with the keys of every mapping in any order."""
    if isinstance(value, dict):
        return {key: shuffled(draw, value[key]) for key in draw(st.permutations(list(value)))}
    return [shuffled(draw, item) for item in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------ text


@st.composite
def written(draw: st.DrawFn, documents: st.SearchStrategy[dict[str, Any]]) -> str:
    """A document as text, with comments wherever YAML allows one."""
    writer = _Writer(draw)
    lines = writer.block(draw(documents), draw(st.sampled_from([2, 3, 4])))
    return "\n".join([*writer.comments(0), *lines, *writer.comments(0)]) + "\n"


class _Writer:
    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._count = 0

    def _rarely(self) -> bool:
        return self._draw(st.integers(0, 5)) == 0

    def _comment(self) -> str:
        self._count += 1
        return f"# comment {self._count}: 'x' - {{"

    def comments(self, columns: int) -> list[str]:
        lines = [" " * columns + self._comment()] if self._rarely() else []
        return ["", *lines] if self._rarely() else lines

    def _beside(self) -> str:
        return f"{self._draw(st.sampled_from([' ', '  ', '     ']))}{self._comment()}" if self._rarely() else ""

    def block(self, value: Any, step: int) -> list[str]:
        """The lines of a mapping or list that is not empty, from the first column."""
        lines: list[str] = []
        for key, item in value.items() if isinstance(value, dict) else ((None, item) for item in value):
            lines += self.comments(0)
            lines += self._pair(key, item, step) if key is not None else self._item(item, step)
        return lines + ([self._comment()] if self._rarely() else [])

    def _pair(self, key: str, item: Any, step: int) -> list[str]:
        if isinstance(item, dict | list) and item and self._draw(st.booleans()):
            inner = self.block(item, step)
            columns = 0 if isinstance(item, list) and self._rarely() else step
            return [f"{key}:{self._beside()}", *_indented(inner, columns)]
        if isinstance(item, str) and item.endswith("\n") and len(item.strip()) > 2:
            return [f"{key}: |{self._beside()}", *_indented(item.rstrip("\n").split("\n"), step)]
        return [f"{key}: {self._flow(item)}{self._beside()}"]

    def _item(self, item: Any, step: int) -> list[str]:
        if isinstance(item, dict) and item and self._draw(st.booleans()):
            first, *rest = [line for line in self.block(item, step) if line.strip()]
            if not first.startswith("#"):
                return [f"- {first}", *_indented(rest, 2)]
        return [f"- {self._flow(item)}{self._beside()}"]

    def _flow(self, item: Any) -> str:
        if isinstance(item, dict):
            space = self._draw(st.sampled_from(["", " "]))
            return "{" + space + ", ".join(f"{key}: {self._flow(inner)}" for key, inner in item.items()) + space + "}"
        if isinstance(item, list):
            return "[" + ", ".join(self._flow(inner) for inner in item) + "]"
        if isinstance(item, str) and item.isalpha() and item not in ("true", "null") and self._draw(st.booleans()):
            return item
        return json.dumps(item, ensure_ascii=False)


def _indented(lines: list[str], columns: int) -> list[str]:
    return [" " * columns + line if line else "" for line in lines]
