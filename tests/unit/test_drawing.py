"""Drawings of plans: golden files (GOLDEN=write rewrites them), and that no text can break a format.

What a picture shows is read back out of it: boxes, arrows and labels, by a small parser per format.
"""

from __future__ import annotations

import html
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.pipeline.drawing.boxes import COLUMNS_MAX, draw_ascii
from conveyord.core.pipeline.drawing.dot import draw_dot
from conveyord.core.pipeline.drawing.formats import FORMATS
from conveyord.core.pipeline.drawing.layers import layered, placed
from conveyord.core.pipeline.drawing.mermaid import draw_mermaid
from conveyord.core.pipeline.drawing.picture import Arrow, Box, Group, columns, groups, legible, shortened
from conveyord.core.pipeline.drawing.svg import draw_svg
from conveyord.core.pipeline.drawing.tree import tree
from conveyord.core.pipeline.graph import Edge, Pipeline, Stage
from conveyord.core.pipeline.optimiser import Plan, share

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "graphs"
SUFFIXES = {"ascii": "txt", "dot": "dot", "mermaid": "mmd", "svg": "svg"}
NASTY = "a < 'b\"c' AND\n\td & 1 > \\n | `x` [y] {z} #35; &amp; é 地震 \x07\u202e ]]> --"


def pipeline(name: str, stages: str, *edges: Edge) -> Pipeline:
    """A pipeline whose stages are written `name:type`; the kind follows from the type."""

    def stage(text: str) -> Stage:
        stage_name, type_name = text.split(":")
        kind = "source" if type_name.startswith("file_") else "sink" if type_name in SINKS else "transform"
        return Stage(stage_name, kind, type_name, {"token": "hunter2"})

    return Pipeline("default", name, tuple(map(stage, stages.split())), edges)


SINKS = ("iceberg", "stdout_pretty")


def chain(*names: str) -> list[Edge]:
    return [Edge(a, b) for a, b in pairwise(names)]


LINEAR = pipeline("quakes", "quakes:file_jsonl flatten:json_flatten lake:iceberg", *chain("quakes", "flatten", "lake"))
BRANCHES = pipeline(
    "by-size",
    "quakes:file_jsonl clean:filter strong:iceberg weak:iceberg dropped:stdout_pretty",
    Edge("quakes", "clean"),
    Edge("clean", "strong", when="mag >= 5 AND place LIKE '%Chile%' OR depth_kilometres < 10", on_slow="spill"),
    Edge("clean", "weak", otherwise=True),
    Edge("clean", "dropped", "dropped"),
)
DIAMOND = pipeline(
    "diamond",
    "in:file_csv left:filter right:sql_transform more:passthrough join:passthrough out:iceberg",
    *(Edge("in", "left"), Edge("in", "right"), Edge("left", "join"), Edge("right", "more")),
    *(Edge("more", "join", when="x > 1"), Edge("join", "out"), Edge("in", "out", when="y")),
)
SOURCES = pipeline(
    "world",
    "eu:file_csv us:file_csv asia:file_jsonl tidy:sql_transform all:passthrough lake:iceberg screen:stdout_pretty",
    *(Edge("eu", "tidy"), Edge("us", "tidy"), Edge("tidy", "all"), Edge("asia", "all"), Edge("all", "lake")),
    *(Edge("all", "screen", on_slow="spill"), Edge("eu", "screen"), Edge("us", "lake")),
)
DEAD = pipeline(
    "careful", "orders:file_jsonl clean:filter lake:iceberg rejected:iceberg", *chain("orders", "clean", "lake")
)
SIBLING = pipeline(
    "large",
    "in:file_jsonl flatten:json_flatten large:filter table:iceberg",
    *chain("in", "flatten", "large"),
    Edge("large", "table", when="mag > 6"),
)
WIDE = [
    pipeline(
        f"p{i:02}", "quakes:file_jsonl f:filter lake:iceberg", Edge("quakes", "f"), Edge("f", "lake", when=f"k = {i}")
    )
    for i in range(12)
]
ESCAPES = pipeline(
    "nasty", "in:file_csv out:iceberg rest:iceberg", Edge("in", "out", when=NASTY), Edge("in", "rest", otherwise=True)
)  # fmt: skip
GRAPHS = {
    "linear": [LINEAR],
    "branches": [BRANCHES],
    "diamond": [DIAMOND],
    "sources": [SOURCES],
    "dead_letters": [DEAD],
    "shared": [LINEAR, SIBLING, DIAMOND],
    "wide": WIDE,
    "escapes": [ESCAPES],
}


def planned(pipelines: list[Pipeline]) -> Plan:
    return share(pipelines, lambda *_: "")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_drawing_is_its_golden_file(name: str, form: str) -> None:
    drawn = FORMATS[form](planned(GRAPHS[name]))
    path = GOLDEN / f"{name}.{SUFFIXES[form]}"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(drawn, encoding="utf-8")
    assert drawn == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMATS)
def test_options_are_not_drawn(form: str) -> None:
    assert "hunter2" not in FORMATS[form](planned([LINEAR, SIBLING]))


@pytest.mark.parametrize("name", GRAPHS)
def test_usual_graphs_fit_a_terminal(name: str) -> None:
    assert max(map(columns, draw_ascii(planned(GRAPHS[name])).splitlines())) <= COLUMNS_MAX


# ------------------------------------------------------------------------------ what is shown


def test_text_is_legible_whatever_it_holds() -> None:
    assert legible("a\n\t b\x00\u202e\ud800") == "a b\\u{0}\\u{202e}\\u{d800}"
    assert columns("地震e\u0301") == 5
    assert shortened("地震地震", 6) == "地震…"
    assert shortened("地震", 4) == "地震"


@given(st.text(st.characters()), st.integers(2, 50))
def test_shortened_text_fits(text: str, limit: int) -> None:
    short = shortened(legible(text), limit)
    assert columns(short) <= limit
    assert short.isprintable()


def test_pipelines_are_grouped_by_what_they_share() -> None:
    found = groups(planned([LINEAR, DIAMOND, SIBLING]))
    assert [group.title for group in found] == ["default/quakes, default/large", "default/diamond"]
    assert [box.lines for box in found[0].boxes] == [
        ("quakes", "file_jsonl", "quakes, large (as in)"),
        ("flatten", "json_flatten", "quakes, large"),
        ("lake", "iceberg", "quakes"),
        ("large", "filter", "large"),
        ("table", "iceberg", "large"),
    ]


def test_many_pipelines_are_counted() -> None:
    (group,) = groups(planned(WIDE))
    assert group.title == "default/p00, default/p01, default/p02, default/p03 and 8 more"
    assert group.boxes[0].lines[2] == "p00, p01, p02, p03, p04, p05, +6 more"


def test_long_names_and_conditions_are_shortened_and_the_full_condition_kept() -> None:
    long = pipeline("x", f"{'n' * 128}:file_csv out:iceberg", Edge("n" * 128, "out", "o", when="c" * 500))
    (group,) = groups(planned([long]))
    assert columns(group.boxes[0].lines[0]) == 40
    assert group.arrows[0].label == f"o, when {'c' * 39}…"
    assert group.arrows[0].meaning == f"o, when {'c' * 500}"


def test_only_the_sink_for_dead_letters_is_dashed() -> None:
    (group,) = groups(planned([DEAD]))
    assert [box.lines for box in group.boxes if box.dashed] == [("rejected", "iceberg", "dead letters")]


def test_nothing_to_draw_draws_nothing() -> None:
    assert draw_ascii(share([])) == ""
    for draw in FORMATS.values():
        draw(share([]))


# ------------------------------------------------------------------------------ reading it back


@st.composite
def graphs(draw: st.DrawFn) -> Pipeline:
    """Any acyclic graph of up to nine stages called s0, s1, ..., with double edges and stages without edges."""
    count = draw(st.integers(1, 9))
    stages = tuple(Stage(f"s{i}", "transform", draw(st.sampled_from(("t", "a_longer_type")))) for i in range(count))
    edges = []
    for target in range(1, count):
        for source in draw(st.lists(st.integers(0, target - 1), max_size=4)):
            when = draw(st.sampled_from((None, None, "x > 1", "a longer condition of words")))
            edges.append(Edge(f"s{source}", f"s{target}", when=when))
    return Pipeline("default", "p", stages, tuple(edges))


_OPEN = {"│": "ud", "─": "lr", "╭": "dr", "╮": "dl", "╰": "ur", "╯": "ul"}
_OPEN |= {"├": "udr", "┤": "udl", "┬": "dlr", "┴": "ulr", "┼": "udlr"}
_STEP = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
_BACK = {"u": "d", "d": "u", "l": "r", "r": "l"}


def traced(picture: str) -> tuple[set[str], Counter]:
    """The names of the boxes and how many lines lead from which to which, by following the lines."""
    lines = picture.splitlines()[2:]
    grid = {(row, column): c for row, line in enumerate(lines) for column, c in enumerate(line)}
    tops, bottoms = {}, []
    for (row, column), character in grid.items():
        if character == "┌":
            name = lines[row + 1][column + 1 :].split()[0]
            end = lines[row].index("┐", column)
            tops.update({(row, each): name for each in range(column, end + 1)})
            bottom = next(r for r in range(row, len(lines)) if grid.get((r, column)) == "└")
            bottoms += [((bottom, each), name) for each in range(column, end) if grid[bottom, each] == "┬"]
    found: Counter = Counter()
    for start, name in bottoms:
        pending = [(start, "d")]
        while pending:
            (row, column), way = pending.pop()
            place = (row + _STEP[way][0], column + _STEP[way][1])
            character = grid.get(place, " ")
            if character == "▼":
                assert way == "d"
                found[name, tops[place[0] + 1, column]] += 1
                continue
            open_to = _OPEN[character]
            if way in "lr" and character == "│":  # drawn through
                pending.append((place, way))
                continue
            assert _BACK[way] in open_to, (place, character)
            pending += [(place, other) for other in open_to if other != _BACK[way]]
    return set(tops.values()), found


@given(graphs())
def test_the_lines_of_an_ascii_drawing_lead_from_and_to_where_the_edges_do(given_pipeline: Pipeline) -> None:
    plan = planned([given_pipeline])
    names, found = traced(draw_ascii(plan, columns_max=10_000))
    assert names == {stage.name for stage in given_pipeline.stages}
    assert found == Counter((edge.source, edge.target) for edge in given_pipeline.edges)
    assert draw_ascii(plan, columns_max=10_000).count("when") == sum(
        edge.when is not None for edge in given_pipeline.edges
    )


@given(graphs())
def test_a_tree_shows_every_stage_once_and_every_edge(given_pipeline: Pipeline) -> None:
    (group,) = groups(planned([given_pipeline]))
    lines = tree(group)
    described = [line for line in lines if line.endswith("]")]
    assert len(described) == len(given_pipeline.stages)
    assert sum("▶" in line for line in lines) == len(given_pipeline.edges)


@given(graphs())
def test_items_of_a_layer_keep_apart_and_arrows_point_to_later_layers(given_pipeline: Pipeline) -> None:
    (group,) = groups(planned([given_pipeline]))
    layers = layered(group)
    sizes = {item: 3 + abs(item) % 4 for layer in layers.items for item in layer}
    begin = placed(layers, sizes=sizes, gap=2)
    assert min(begin.values()) >= 0
    layer_of = {item: number for number, layer in enumerate(layers.items) for item in layer}
    assert {box.number for box in group.boxes} == {item for item in layer_of if item >= 0}
    for layer in layers.items:
        for one, other in pairwise(layer):
            assert begin[one] + sizes[one] + 2 <= begin[other]
    for number, segments in enumerate(layers.segments):
        assert all(layer_of[each.source] == number - 1 and layer_of[each.target] == number for each in segments)


def test_a_box_is_as_wide_on_every_line_with_wide_characters() -> None:
    wide = Pipeline(
        "d", "p", (Stage("地震e\u0301", "source", "x"), Stage("o", "sink", "y")), (Edge("地震e\u0301", "o"),)
    )
    top, name, kind, bottom = draw_ascii(planned([wide])).splitlines()[2:6]
    assert columns(top) == columns(name) == columns(kind) == columns(bottom)


_STRING = r'"((?:[^"\\]|\\.)*)"'
_ATTRIBUTE = rf"(\w+)=(?:{_STRING}|(\w+))"
_DOT = re.compile(
    rf"digraph conveyord {{|  rankdir=LR;|  (?:node|edge) \[fontname=\"sans-serif\"\];|  subgraph cluster_\d+ {{"
    rf"|    label={_STRING};|    (n\d+)(?: -> (n\d+))?(?: \[((?:{_ATTRIBUTE}(?:, )?)+)\])?;|  }}|}}"
)


def dot_read(text: str) -> tuple[list[list[str]], list[tuple[str, str, str]]]:
    """The lines of every node, and every edge with its label, as Graphviz would read them."""
    nodes, edges = {}, []
    for line in text.splitlines():
        match = _DOT.fullmatch(line)
        assert match, line
        if match[2]:
            values = {key: quoted or plain for key, quoted, plain in re.findall(_ATTRIBUTE, match[4] or "")}
            label = re.split(r"(\\.)", values.get("label", ""))
            read = "".join({r"\n": "\n", r"\\": "\\", r"\"": '"'}.get(part, part) for part in label)
            if match[3]:
                edges.append((match[2], match[3], html.unescape(read)))
            else:
                nodes[match[2]] = html.unescape(read).split("\n")
    return list(nodes.values()), [(nodes[a][0], nodes[b][0], label) for a, b, label in edges]


_MERMAID = re.compile(
    r"flowchart LR|  subgraph g\d+\[\"[^\"<>]*\"\]|  end"
    r"|  classDef deadLetters [-\w: ]+|  class n\d+(?:,n\d+)* deadLetters"
    r"|    (n\d+)(?:\(\[|\[\(|\[)\"([^\"]*)\"(?:\]\)|\)\]|\])|    (n\d+) (?:-->|-\.->)(?:\|\"([^\"]*)\"\|)? (n\d+)"
)


def mermaid_read(text: str) -> tuple[list[list[str]], list[tuple[str, str, str]]]:
    """The same for Mermaid."""

    def plain(label: str) -> str:
        assert not re.search(r"[<>&`\\|\[\]{}()]", label)
        return re.sub(r"#(\d+);", lambda match: chr(int(match[1])), label)

    nodes, edges = {}, []
    for line in text.splitlines():
        match = _MERMAID.fullmatch(line)
        assert match, line
        if match[1]:
            nodes[match[1]] = [plain(each) for each in match[2].split("<br/>")]
        elif match[3]:
            edges.append((match[3], match[5], plain(match[4] or "")))
    return list(nodes.values()), [(nodes[a][0], nodes[b][0], label) for a, b, label in edges]


def expected(plan: Plan) -> tuple[list[list[str]], list[tuple[str, str, str]]]:
    boxes = {box.number: list(box.lines) for group in groups(plan) for box in group.boxes}
    arrows = [(boxes[a.source][0], boxes[a.target][0], a.label) for group in groups(plan) for a in group.arrows]
    return list(boxes.values()), arrows


conditions = st.one_of(
    st.text(st.characters(), min_size=1), st.text('"\\<>&#;`|[]{}()\n-= nq', min_size=1), st.just(NASTY)
)


def with_condition(when: str) -> Plan:
    edges = (Edge("in", "out", when=when, on_slow="spill"), Edge("in", "rest", otherwise=True))
    return planned([pipeline("p", "in:file_csv out:iceberg rest:iceberg dead:iceberg", *edges)])


@given(conditions)
def test_dot_says_what_was_meant_whatever_the_condition_holds(when: str) -> None:
    plan = with_condition(when)
    assert dot_read(draw_dot(plan)) == expected(plan)


@given(conditions)
def test_mermaid_says_what_was_meant_whatever_the_condition_holds(when: str) -> None:
    plan = with_condition(when)
    assert mermaid_read(draw_mermaid(plan)) == expected(plan)


@given(conditions)
def test_svg_is_xml_that_says_what_was_meant_whatever_the_condition_holds(when: str) -> None:
    plan = with_condition(when)
    root = ET.fromstring(draw_svg(plan).encode("utf-8"))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    nodes, edges = expected(plan)
    assert all(line in texts for lines in nodes for line in lines)
    assert all(label in texts for _, _, label in edges)


@given(conditions)
def test_ascii_keeps_its_lines_whatever_the_condition_holds(when: str) -> None:
    picture = draw_ascii(with_condition(when), columns_max=10_000)
    assert all(line.isprintable() for line in picture.split("\n"))
    assert picture.count("otherwise") >= 1


@pytest.mark.parametrize("name", GRAPHS)
def test_dot_and_mermaid_draw_the_same_graph(name: str) -> None:
    plan = planned(GRAPHS[name])
    assert dot_read(draw_dot(plan)) == mermaid_read(draw_mermaid(plan)) == expected(plan)


@given(graphs())
def test_svg_boxes_lie_within_the_picture_and_do_not_touch(given_pipeline: Pipeline) -> None:
    root = ET.fromstring(draw_svg(planned([given_pipeline])))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    boxes = [
        tuple(float(each.get(key, 0)) for key in ("x", "y", "width", "height"))
        for each in root.iter("{http://www.w3.org/2000/svg}rect")
    ]
    assert len(boxes) == len(given_pipeline.stages)
    for x, y, w, h in boxes:
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(boxes, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_svg_is_self_contained() -> None:
    drawn = draw_svg(planned(GRAPHS["shared"]))
    tags = {each.tag.rpartition("}")[2] for each in ET.fromstring(drawn).iter()}
    assert tags == {"svg", "title", "style", "g", "rect", "path", "text"}
    assert "http" not in drawn.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_svg_lines_and_labels_can_be_read_on_white_and_on_black() -> None:
    """4.5 : 1 is what WCAG 2 asks of text."""
    (colour,) = set(re.findall(r"\.(?:label|head)\{fill:#(\w{6})\}", draw_svg(planned([LINEAR]))))
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 4.5
    assert (luminance + 0.05) / 0.05 >= 4.5


def test_a_deep_graph_is_drawn_as_a_tree_without_recursion() -> None:
    boxes = tuple(Box(i, "transform", (f"s{i}", "t"), dashed=False) for i in range(3_000))
    arrows = tuple(Arrow(i, i + 1, "", "", spills=False) for i in range(2_999))
    assert len(tree(Group("deep", boxes, arrows))) == 3_000
