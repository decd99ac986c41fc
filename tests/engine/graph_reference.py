"""What a pipeline must deliver, worked out row by row in plain Python, and random pipelines to ask that of.

Stages and conditions come from menus whose every entry says in Python what the SQL or the operator does.
A row is a dict of its columns; columns that are null count as absent, because branches that come together
again fill up each other's columns.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from conveyord.core.pipeline.checks import check_graph
from conveyord.core.pipeline.graph import MAIN, DeadLetterPolicy, Edge, Pipeline, Stage
from tests.engine.graph_rig import DLQ, RECORD_BYTES, Row, World, pipeline, raw_of, sink, source, transform


class Poison(Exception):
    """The row fails here."""


Condition = Callable[[Row], bool]


def _ten_by(row: Row) -> bool:
    if row["v"] is None:
        return False
    if row["v"] == 0:
        raise Poison
    return 10 // row["v"] > 2


CONDITIONS: Mapping[str, Condition] = {
    "v > 2": lambda row: row["v"] is not None and row["v"] > 2,
    "k = 'a' OR v = 1": lambda row: row["k"] == "a" or row["v"] == 1,
    "v IS NULL": lambda row: row["v"] is None,
    "n % 2 = 0": lambda row: row["n"] % 2 == 0,
    "10 / v > 2": _ten_by,
}

Work = Callable[[Row], dict[str, list[Row]]]


def _filter(when: str) -> Work:
    def work(row: Row) -> dict[str, list[Row]]:
        return {MAIN: [row]} if CONDITIONS[when](row) else {"dropped": [row]}

    return work


def _divided(column: str, by: Callable[[int], int]) -> Work:
    def work(row: Row) -> dict[str, list[Row]]:
        value = None
        if row["v"] is not None:
            if by(row["v"]) == 0:
                raise Poison
            value = int(10 / by(row["v"]))
        return {MAIN: [{**row, column: value}]}

    return work


def _brittle(row: Row) -> dict[str, list[Row]]:
    if row["v"] in (5, 6):
        raise Poison
    return {MAIN: [row]}


def _repeat(row: Row) -> dict[str, list[Row]]:
    return {MAIN: [row] * (row["n"] % 3)}


def _flatten(row: Row) -> dict[str, list[Row]]:
    flat = {name: value for name, value in row.items() if name != "o"}
    return {MAIN: [{**flat, **{f"o_{name}": value for name, value in (row.get("o") or {}).items()}}]}


def _same(row: Row) -> dict[str, list[Row]]:
    return {MAIN: [row]}


def _changed(change: Callable[[Row], Row]) -> Work:
    return lambda row: {MAIN: [{**row, **change(row)}]}


def _project(row: Row) -> dict[str, list[Row]]:
    nested = {name: value for name, value in (row.get("o") or {}).items() if name == "x"}
    return {MAIN: [{"n": row["n"], "k": row["k"], "v": row["v"], "o": nested or None}]}


def _without_nested(row: Row) -> dict[str, list[Row]]:
    return {MAIN: [{name: value for name, value in row.items() if name != "o"}]}


def _rename(row: Row) -> dict[str, list[Row]]:
    if not row.get("o") or "x" not in row["o"]:
        return {MAIN: [row]}
    return {MAIN: [{**row, "o": {"y": row["o"]["x"]}}]}


def _clean(row: Row) -> dict[str, list[Row]]:
    return {MAIN if row["v"] is not None else "dropped": [{**row, "k": row["k"].upper()}]}


def _validate(on_invalid: str) -> Work:
    def work(row: Row) -> dict[str, list[Row]]:
        error = "v is above max (6)" if row["v"] is not None and row["v"] > 6 else None
        if on_invalid == "tag":
            return {MAIN: [{**row, "_valid": error is None, "_errors": error}]}
        if error is None:
            return {MAIN: [row]}
        if on_invalid == "dead_letter":
            raise Poison
        return {"invalid": [{**row, "_errors": error}]} if on_invalid == "route" else {}

    return work


def _split(mode: str) -> Work:
    """Of outputs in the order of `SPLIT`."""

    def work(row: Row) -> dict[str, list[Row]]:
        met = []
        for output, when in SPLIT.items():
            if CONDITIONS[when](row):
                met.append(output)
                if mode == "first":
                    break
        return {output: [row] for output in met or [MAIN]}

    return work


def _lists(name: str) -> Work:
    def work(row: Row) -> dict[str, list[Row]]:
        if row["v"] is None or row["v"] <= 3:
            return {}
        return {MAIN: [{**row, name: item} for item in (row["n"], row["v"])]}

    return work


def _path(row: Row) -> str:
    return f"k={row['k']}/v={'__HIVE_DEFAULT_PARTITION__' if row['v'] is None else row['v']}"


def _lookup(name: str, on_miss: str) -> Work:
    def work(row: Row) -> dict[str, list[Row]]:
        word = WORDS.get(row["v"])
        if word is None and on_miss == "dead_letter":
            raise Poison
        if word is None and on_miss == "drop":
            return {"missed": [row]}
        return {MAIN: [{**row, name: "?" if word is None else word}]}

    return work


SPLIT = {"big": "v > 2", "even": "n % 2 = 0", "brittle": "10 / v > 2"}
WORDS_FILE = Path(__file__).with_name("graph_words.csv")
"""A reference for lookups: words for most of the values of `v`."""
WORDS = {int(row["v"]): row["word"] for row in csv.DictReader(WORDS_FILE.read_text().splitlines())}
LOOKUP = {"reference": {"type": "csv", "path": str(WORDS_FILE)}, "on": ["v"], "columns": {"word": "{name}"}}


@dataclass(frozen=True)
class Item:
    """One entry of the menu of transforms. `{name}` in an option becomes the stage's number.

    outputs: those beside the main one. marks: a column or field of a fixed name that it adds. Where that is there
    already it is refused, so no two of a graph add the same.
    """

    type: str
    options: Mapping[str, Any]
    work: Callable[[str], Work]
    tells_origin: bool = True
    may_fail: bool = False
    outputs: tuple[str, ...] = ()
    marks: str = ""


MENU: tuple[Item, ...] = (
    Item("passthrough", {}, lambda _: _same),
    Item("slow", {}, lambda _: _same),
    Item("filter", {"when": "v > 2"}, lambda _: _filter("v > 2"), outputs=("dropped",)),
    Item("filter", {"when": "10 / v > 2"}, lambda _: _filter("10 / v > 2"), may_fail=True, outputs=("dropped",)),
    Item(
        "sql_transform",
        {"query": "SELECT *, n + 1 AS {name} FROM input_data WHERE v IS NULL OR v <> 4"},
        lambda name: lambda row: {} if row["v"] == 4 else {MAIN: [{**row, name: row["n"] + 1}]},
    ),
    Item(
        "sql_transform",
        {"query": "SELECT *, 10 / (v - 3) AS {name} FROM input_data"},
        lambda name: _divided(name, lambda v: v - 3),
        may_fail=True,
    ),
    Item("json_flatten", {}, lambda _: _flatten),
    Item("repeat", {}, lambda _: _repeat),
    Item("brittle", {"poison": [5, 6]}, lambda _: _brittle, may_fail=True),
    Item("reverse", {}, lambda _: _same, tells_origin=False),
    Item(
        "map",
        {"columns": {"{name}": "n * 2", "k": "k || 'a'"}},
        lambda name: _changed(lambda row: {name: row["n"] * 2, "k": row["k"] + "a"}),
    ),
    Item("map", {"columns": {"{name}": "10 / (v - 2)"}}, lambda name: _divided(name, lambda v: v - 2), may_fail=True),
    Item("project", {"columns": ["n", "k", "v", "o.x"], "on_missing": "ignore"}, lambda _: _project),
    Item("project", {"drop": ["o"], "on_missing": "ignore"}, lambda _: _without_nested),
    Item("rename", {"columns": {"o.x": "y"}, "on_missing": "ignore"}, lambda _: _rename, marks="o.y"),
    Item("cast", {"columns": {"n": "int", "v": "int"}}, lambda _: _same),
    Item(
        "clean_data",
        {"columns": ["k"], "normalize_case": "upper", "remove_nulls": ["v"]},
        lambda _: _clean,
        outputs=("dropped",),
    ),
    Item(
        "mask",
        {"columns": {"k": "hash"}, "unkeyed": True},
        lambda _: _changed(lambda row: {"k": hashlib.sha256(row["k"].encode()).hexdigest()}),
    ),
    Item("validate", {"columns": {"v": {"max": 6}}}, lambda _: _validate("dead_letter"), may_fail=True),
    Item("validate", {"columns": {"v": {"max": 6}}, "on_invalid": "drop"}, lambda _: _validate("drop")),
    Item("validate", {"columns": {"v": {"max": 6}}, "on_invalid": "tag"}, lambda _: _validate("tag"), marks="_errors"),
    Item(
        "validate",
        {"columns": {"v": {"max": 6}}, "on_invalid": "route"},
        lambda _: _validate("route"),
        outputs=("invalid",),
        marks="_errors",
    ),
    Item("split", {"outputs": SPLIT}, lambda _: _split("first"), may_fail=True, outputs=tuple(SPLIT)),
    Item("split", {"outputs": SPLIT, "mode": "all"}, lambda _: _split("all"), may_fail=True, outputs=tuple(SPLIT)),
    Item("flat_map", {"each": "CASE WHEN v > 3 THEN make_array(n, v) ELSE NULL END", "as": "{name}"}, _lists),
    Item(
        "partition",
        {"partition_by": ["k", "v"], "column": "{name}"},
        lambda name: _changed(lambda row: {name: _path(row)}),
    ),
    Item("lookup", {**LOOKUP, "on_miss": "drop"}, lambda name: _lookup(name, "drop"), outputs=("missed",)),
    Item("lookup", {**LOOKUP, "on_miss": "dead_letter"}, lambda name: _lookup(name, "dead_letter"), may_fail=True),
    Item(
        "lookup",
        {**LOOKUP, "on_miss": "default", "default": {"{name}": "?"}},
        lambda name: _lookup(name, "default"),
    ),
    Item("schema_evolution", {"columns": {"v": "long"}}, lambda _: _same),
    Item("rate_limit", {"rows_per_second": 1e9}, lambda _: _same),
    Item("rate_limit", {"rows_per_second": 1e9, "on_excess": "drop"}, lambda _: _same, outputs=("dropped",)),
    Item(
        "rate_limit",
        {"rows_per_second": 1e9, "on_excess": "tag"},
        lambda _: _changed(lambda _: {"_rate_limited": False}),
        marks="_rate_limited",
    ),
)


def made(number: int, item: Item) -> Stage:
    name = f"t{number}"
    return transform(name, item.type, **_named(item.options, name))


def _named(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return {_named(key, name): _named(inner, name) for key, inner in value.items()}
    return value.replace("{name}", name) if isinstance(value, str) else value


def outputs_of(stages: list[Stage]) -> dict[str, tuple[str, ...]]:
    return {each.name: item_of(each).outputs if each.kind == "transform" else () for each in stages}


def _marks_once(stages: list[Stage]) -> bool:
    marks = [item_of(each).marks for each in stages if each.kind == "transform" and item_of(each).marks]
    return len(marks) == len(set(marks))


def item_of(stage: Stage) -> Item:
    number = int(stage.name[1:])
    return next(item for item in MENU if made(number, item) == stage)


Place = tuple[str, str, int]
"""Source, partition and offset."""


@dataclass
class Expected:
    """rows: by sink, how often each row arrives. letters: by (stage, source, partition, offset), the raw bytes.

    origins: the stages at which it can be told where a row came from. joined: the sinks above which branches meet.
    records: the bytes of what was read.
    """

    rows: dict[str, Counter[tuple[Any, ...]]] = field(default_factory=dict)
    letters: dict[tuple[str, str, str, int], bytes] = field(default_factory=dict)
    origins: set[str] = field(default_factory=set)
    joined: set[str] = field(default_factory=set)
    read: dict[str, int] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)
    records: dict[Place, bytes] = field(default_factory=dict)


def plain(row: Row) -> tuple[Any, ...]:
    """A row as something that can be counted: columns without nulls, and nested ones as if they were flat.

    Flattening rows of which some are flat already numbers the second column of a name: `o_x_2` counts as `o_x`.
    """
    values = {name: value for name, value in row.items() if value is not None and name != "o" and name[:2] != "o_"}
    nested = [(name, value) for name, value in (row.get("o") or {}).items() if value is not None]
    flat = {name[2:]: value for name, value in row.items() if name[:2] == "o_" and value is not None}
    nested += [(re.sub(r"_\d+$", "", name), value) for name, value in flat.items()]
    return (*sorted(values.items()), *sorted(nested))


def expected(pipe: Pipeline, tables: Mapping[str, list[Row]]) -> Expected:
    """What `pipe` delivers of `tables`, on whole tables and without batches."""
    found = Expected()
    arriving: defaultdict[str, list[tuple[Place, Row]]] = defaultdict(list)
    above: dict[str, set[str]] = {}
    dead_above: Counter[str] = Counter()
    for stage in pipe.stages:
        inbound = pipe.edges_to(stage.name)
        above[stage.name] = {name for edge in inbound for name in above[edge.source]}
        if stage.kind == "source":
            above[stage.name] = {stage.name}
        is_joined = len(inbound) > 1 or any(edge.source in found.joined for edge in inbound)
        if is_joined:
            found.joined.add(stage.name)
        told = all(
            edge.source in found.origins and edge.on_slow == "block" and _tells(pipe.stage(edge.source))
            for edge in inbound
        )
        if told:
            found.origins.add(stage.name)
        dead_above[stage.name] = sum(dead_above[edge.source] for edge in inbound)
        if stage.kind == "sink":
            found.rows[stage.name] = Counter(plain(row) for _, row in arriving[stage.name])
            found.read[stage.name] = sum(len(tables[pipe.stage(name).options["table"]]) for name in above[stage.name])
            found.dead[stage.name] = dead_above[stage.name]
            continue
        rows = _read(stage, tables, found) if stage.kind == "source" else arriving[stage.name]
        dead_above[stage.name] += _leave(pipe, stage, rows, arriving, found)
    return found


def _tells(stage: Stage) -> bool:
    return stage.kind == "source" or item_of(stage).tells_origin


def _read(stage: Stage, tables: Mapping[str, list[Row]], found: Expected) -> list[tuple[Place, Row]]:
    rows = []
    count = stage.options["partitions"]
    for index, row in enumerate(tables[stage.options["table"]]):
        place = (stage.name, f"p{index % count}", index // count * RECORD_BYTES)
        if row.get("bad"):
            found.letters[(stage.name, *place)] = raw_of(row)
        else:
            found.records[place] = raw_of(row)
            rows.append((place, row))
    return rows


def _leave(
    pipe: Pipeline,
    stage: Stage,
    rows: list[tuple[Place, Row]],
    arriving: defaultdict[str, list[tuple[Place, Row]]],
    found: Expected,
) -> int:
    """Send what `stage` makes of `rows` along its edges. Returns how many of them died in the stage itself."""
    work = _same if stage.kind == "source" else item_of(stage).work(stage.name)
    dead = 0
    edges = defaultdict(list)
    for edge in pipe.edges_from(stage.name):
        edges[edge.output].append(edge)
    raws = found.letters
    for place, row in rows:
        try:
            outputs = work(row)
        except Poison:
            raws[(stage.name, *place)] = found.records[place]
            dead += 1
            continue
        for output, results in outputs.items():
            for result in results:
                try:
                    taken = {edge: CONDITIONS[edge.when](result) for edge in edges[output] if edge.when is not None}
                except Poison:
                    name = f"{stage.name}.{output}/edges" if output else f"{stage.name}/edges"
                    raws[(name, *place)] = found.records[place]
                    continue
                for edge in edges[output]:
                    if not any(taken.values()) if edge.otherwise else taken.get(edge, True):
                        arriving[edge.target].append((place, result))
    return dead


# ---------------------------------------------------------------------------- random pipelines

_WHENS = st.one_of(st.none(), st.sampled_from(list(CONDITIONS)))


@st.composite
def tables(draw: st.DrawFn, sources: int = 3) -> dict[str, list[Row]]:
    """Tables of rows of which some are poison somewhere and some are bad from the start."""
    made = {}
    for number in range(sources):
        values = draw(st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=24))
        bad = draw(st.sets(st.integers(0, 23), max_size=3))
        made[f"table{number}"] = [
            {"n": number * 1000 + n, "v": v, "k": "abc"[n % 3], "o": {"x": n}} | ({"bad": True} if n in bad else {})
            for n, v in enumerate(values)
        ]
    return made


@st.composite
def pipelines(
    draw: st.DrawFn,
    *,
    name: str = "p",
    dlq: DeadLetterPolicy | None = DLQ,
    spills: bool = False,
    menu: tuple[Item, ...] = MENU,
) -> Pipeline:
    """Any graph that validates, of up to three sources, five transforms and three sinks."""
    sources = [
        source(
            f"s{number}",
            table=f"table{number}",
            batch_rows=draw(st.integers(1, 9)),
            partitions=draw(st.integers(1, 2)),
        )
        for number in range(draw(st.integers(1, 3)))
    ]
    transforms = [made(number, draw(st.sampled_from(menu))) for number in range(draw(st.integers(0, 5)))]
    sinks = [sink(f"k{number}", commit_batches=draw(st.integers(1, 4))) for number in range(draw(st.integers(1, 3)))]
    edges: list[Edge] = []
    senders = list(sources)
    for target in [*transforms, *sinks]:
        ends = draw(st.lists(st.sampled_from(senders), min_size=1, max_size=3, unique_by=lambda end: end.name))
        for end in ends:
            edges.append(_edge(draw, end, target, spills=spills))
        if target.kind == "transform":
            senders.append(target)
    for sender in senders:
        if not any(edge.source == sender.name for edge in edges):
            edges.append(_edge(draw, sender, draw(st.sampled_from(sinks)), spills=spills))
    edges = _with_otherwise(draw, edges)
    stages = [*sources, *transforms, *sinks]
    assume(_marks_once(stages) and not check_graph(stages, edges, outputs=outputs_of(stages)))
    return pipeline(stages, edges, name=name, dlq=dlq)


def _edge(draw: st.DrawFn, end: Stage, target: Stage, *, spills: bool) -> Edge:
    output = draw(st.sampled_from([MAIN, *item_of(end).outputs])) if end.kind == "transform" else MAIN
    slow = draw(st.sampled_from(["block", "spill"])) if spills else "block"
    return Edge(end.name, target.name, output, when=draw(_WHENS), on_slow=slow)


def _with_otherwise(draw: st.DrawFn, edges: list[Edge]) -> list[Edge]:
    """Of the unconditional edges beside conditional ones, some become `otherwise`."""
    told = {(edge.source, edge.output) for edge in edges if edge.when is not None}
    return [
        Edge(edge.source, edge.target, edge.output, otherwise=True, on_slow=edge.on_slow)
        if edge.when is None and (edge.source, edge.output) in told and draw(st.booleans())
        else edge
        for edge in edges
    ]


@st.composite
def alike(
    draw: st.DrawFn, *, count: int = 2, dlq: DeadLetterPolicy | None = DLQ, menu: tuple[Item, ...] = MENU
) -> list[Pipeline]:
    """Pipelines of one beginning: the others have some conditions and stages changed."""
    first = draw(pipelines(name="p0", dlq=dlq, menu=menu))
    made_ones = [first]
    for number in range(1, count):
        stages = [
            made(int(each.name[1:]), draw(st.sampled_from(menu)))
            if each.kind == "transform" and not item_of(each).outputs and draw(st.integers(0, 3)) == 0
            else each
            for each in first.stages
        ]
        edges = [
            Edge(edge.source, edge.target, edge.output, when=draw(_WHENS))
            if not edge.otherwise and draw(st.integers(0, 3)) == 0
            else edge
            for edge in first.edges
        ]
        assume(_marks_once(stages) and not check_graph(stages, edges, outputs=outputs_of(stages)))
        made_ones.append(pipeline(stages, edges, name=f"p{number}", dlq=dlq))
    return made_ones


def delivered(world: World, pipe: Pipeline) -> dict[str, Counter[tuple[Any, ...]]]:
    """By sink, how often each row has arrived."""
    return {
        each.name: Counter(plain(row) for row in world.kept(pipe.identity, each.name).rows)
        for each in pipe.of_kind("sink")
    }
