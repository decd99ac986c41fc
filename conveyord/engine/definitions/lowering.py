"""Lowers the definition of a pipeline, whatever its form, to the one graph that everything else sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ValidationError

from conveyord.core.pipeline.checks import Finding, check_graph, in_order, resolve_output, unknown_in_test
from conveyord.core.pipeline.graph import (
    MAIN,
    DeadLetterPolicy,
    Edge,
    Pipeline,
    PipelineTest,
    SchemaContract,
    Stage,
    StageKind,
)
from conveyord.core.pipeline.manifest import (
    MAPPING,
    EdgeSpec,
    GraphBody,
    LinearBody,
    PipelineBody,
    PipelineManifest,
    body_form,
)
from conveyord.core.pipeline.stages import StageSpec, is_reference, stage_names
from conveyord.engine.conditions import condition_problem
from conveyord.engine.contracts import Sink
from conveyord.engine.definitions.operators import OperatorChecks
from conveyord.engine.definitions.resources import KIND_OF, Resource, Resources
from conveyord.engine.definitions.topics import WrittenMapping, chains_of
from conveyord.engine.model_keys import canonical_keys
from conveyord.engine.registry import validate_options
from conveyord.engine.yaml_source import Path

DEAD_LETTERS = "dead-letters"
"""The default name of a dead-letter sink that is written inline in `dlq`."""

_KEYS: dict[str, StageKind] = {"sources": "source", "transforms": "transform", "sinks": "sink", "steps": "transform"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A stage as a pipeline mentions it: where, as what, and by what name if none is given."""

    path: Path
    kind: StageKind
    entry: str | StageSpec
    default: str


@dataclass(slots=True)
class _Graph:
    """What a body is lowered to, with the place of each stage and edge."""

    stages: list[Stage] = field(default_factory=list)
    places: list[Path] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    edge_places: list[Path] = field(default_factory=list)
    dead_letter_sink: str | None = None


def lower(resource: Resource, resources: Resources, operators: OperatorChecks) -> Pipeline | None:
    """The checked pipeline, or None after remembering problems."""
    return _Lowering(resource, resources, operators).run()


class _Lowering:
    def __init__(self, resource: Resource, resources: Resources, operators: OperatorChecks) -> None:
        self._resource = resource
        self._written = resource.written
        self._resources = resources
        self._operators = operators
        self._problems_before = len(resource.written.text.problems)
        self._defined: dict[str, Resource] = {}

    def run(self) -> Pipeline | None:
        self._check_stages()
        body = self._body()
        if body is None:
            return None
        graph = self._graph(body)
        if graph is None:
            return None
        outputs = self._outputs(graph)
        for finding in check_graph(graph.stages, graph.edges, outputs=outputs, dead_letter_sink=graph.dead_letter_sink):
            self._report(finding, graph)
        self._check_conditions(graph)
        self._check_contract(body, graph)
        self._check_copies(body, graph)
        tests = tuple(PipelineTest(name=test.name, given=test.given, expect=test.expect) for test in body.tests)
        for index, test in enumerate(tests):
            for side, key, message in unknown_in_test(
                test, graph.stages, outputs, keeps_dead_letters=body.dlq is not None
            ):
                self._written.at((*self._resource.base, "tests", index, side, key), message, key=True)
        if self._resource.model is None or len(self._written.text.problems) > self._problems_before:
            return None
        dlq = None
        if body.dlq is not None:
            dlq = DeadLetterPolicy(sink=graph.dead_letter_sink, max_retries=body.dlq.maxRetries, retry=body.dlq.backoff)
        return Pipeline(
            namespace=self._resource.namespace,
            name=self._resource.name,
            stages=in_order(graph.stages, graph.edges),
            edges=tuple(graph.edges),
            mode=body.mode,
            labels=self._resource.labels,
            annotations=self._resource.annotations,
            dlq=dlq,
            schema=body.schema_.contract,
            tests=tests,
            enabled=body.enabled,
        )

    def _body(self) -> PipelineBody | None:
        """The body, or as much of an invalid one as its graph needs, so that its edges are checked in the same go."""
        model: BaseModel | None = self._resource.model
        if isinstance(model, PipelineManifest):
            return model.spec
        if isinstance(model, PipelineBody):
            return model
        spec = self._spec()
        kind = GraphBody if body_form(spec) == "graph" else LinearBody
        known = {key: value for key, value in spec.items() if key in kind.model_fields}
        try:
            return kind.model_validate(known)
        except ValidationError as error:
            wrong = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
        sound = {key: value for key, value in known.items() if key not in wrong}
        if "dlq" in wrong and isinstance(spec["dlq"], dict):
            # Without it, its sink would look like one that nothing reaches.
            sound["dlq"] = {"sink": spec["dlq"].get("sink")}
        try:
            return kind.model_validate(sound)
        except ValidationError:
            return None

    def _spec(self) -> dict[str, Any]:
        value = self._written.value if self._resource.base == () else self._written.value.get("spec")
        return value if isinstance(value, dict) else {}

    def _mentioned(self) -> Iterator[tuple[Path, Any, StageKind]]:
        """Every stage as it was written, also where the body is not valid."""
        base, spec = self._resource.base, self._spec()
        for key, kind in _KEYS.items():
            entries = spec.get(key)
            for index, entry in enumerate(entries if isinstance(entries, list) else ()):
                yield (*base, key, index), entry, kind
        for key in ("source", "sink"):
            if key in spec:
                yield (*base, key), spec[key], "source" if key == "source" else "sink"
        dlq = spec.get("dlq")
        if isinstance(dlq, dict) and isinstance(dlq.get("sink"), dict):
            yield (*base, "dlq", "sink"), dlq["sink"], "sink"

    def _check_stages(self) -> None:
        for path, entry, kind in self._mentioned():
            if isinstance(entry, str):
                if is_reference(entry):  # if not, that has been reported
                    self._find(entry, kind, path)
            elif isinstance(entry, dict) and isinstance(entry.get("type"), str):
                options = {key: value for key, value in entry.items() if key not in ("type", "name", "id")}
                self._operators.check(self._written, kind, entry["type"], options, base=path)

    def _find(self, reference: str, kind: StageKind, path: Path) -> Resource | None:
        found = self._resources.find(KIND_OF[kind], reference, self._resource.namespace)
        if found is None:
            why = self._resources.why_missing(KIND_OF[kind], reference, self._resource.namespace, self._operators)
            if why is not None:
                self._written.at(path, why)
        return found

    def _graph(self, body: PipelineBody) -> _Graph | None:
        entries = list(self._entries(body))
        dead_letters = None if body.dlq is None else body.dlq.sink
        own_sinks = [entry for entry in entries if entry.kind == "sink"]
        inline = isinstance(dead_letters, StageSpec)
        if isinstance(dead_letters, StageSpec):
            entries.append(_Entry((*self._resource.base, "dlq", "sink"), "sink", dead_letters, DEAD_LETTERS))
        given = [(None if isinstance(entry.entry, str) else entry.entry.name, entry.default) for entry in entries]
        graph = _Graph()
        for entry, name in zip(entries, stage_names(given), strict=True):
            graph.stages.append(self._stage(entry, name))
            graph.places.append(entry.path)
        if inline:
            graph.dead_letter_sink = graph.stages[-1].name
        if any(self._maps_topics(stage) for stage in graph.stages):
            mapped = self._mapped(body, graph)
            if mapped is None:
                return None
            graph = mapped
        elif not own_sinks:
            if not any(stage.options.get(MAPPING) is not None for stage in graph.stages):  # else that has been reported
                self._report_missing_sink(body)
            return None
        if not inline and isinstance(dead_letters, str):
            self._add_dead_letter_sink(graph, dead_letters)
        return graph if graph.edges or self._connect(body, graph) else None

    def _report_missing_sink(self, body: PipelineBody) -> None:
        key = "sink" if isinstance(body, LinearBody) else "sinks"
        base = self._resource.base
        place = "'spec'" if base else "the pipeline"
        self._written.at(base, f"the key {key!r} is missing in {place}", key=True)

    def _mapped(self, body: PipelineBody, graph: _Graph) -> _Graph | None:
        """The graph with the stages that stand for the topics of its sources. None after remembering problems."""
        problems = len(self._written.text.problems)
        self._check_alone(body, graph)
        made = _Graph(dead_letter_sink=graph.dead_letter_sink)
        for stage, place in zip(graph.stages, graph.places, strict=True):
            if stage.kind != "source":
                if stage.name == graph.dead_letter_sink or self._is_named_in_dlq(body, stage):
                    made.stages.append(stage)
                    made.places.append(place)
                continue
            mapping = self._mapping(stage, place) if self._maps_topics(stage) else None
            if mapping is None:
                return None
            for chain in chains_of(stage, body.schema_.contract, mapping.report):
                mapping.check(chain, self._operators)
                made.stages += chain.stages
                made.places += [place if mapping.is_abroad else mapping.place(chain.path)] * len(chain.stages)
                for source, target in pairwise(chain.stages):
                    made.edges.append(Edge(source.name, target.name))
                    made.edge_places.append(made.places[-1])
        return made if len(self._written.text.problems) == problems else None

    def _entries(self, body: PipelineBody) -> Iterator[_Entry]:
        base = self._resource.base
        if isinstance(body, LinearBody):
            yield _entry((*base, "source"), "source", body.source, "source")
            for index, step in enumerate(body.steps):
                yield _entry((*base, "steps", index), "transform", step, "")
            if body.sink is not None:
                yield _entry((*base, "sink"), "sink", body.sink, "sink")
        elif isinstance(body, GraphBody):
            for key, entries in (
                ("sources", body.sources),
                ("transforms", body.transforms),
                ("sinks", body.sinks or ()),
            ):
                for index, entry in enumerate(entries):
                    yield _entry((*base, key, index), _KEYS[key], entry, "")

    def _maps_topics(self, stage: Stage) -> bool:
        if stage.kind != "source" or stage.options.get(MAPPING) is None:
            return False
        operator = self._operators.find("source", stage.type)
        return not isinstance(operator, str) and MAPPING in canonical_keys(operator.Config)

    def _is_named_in_dlq(self, body: PipelineBody, stage: Stage) -> bool:
        return body.dlq is not None and body.dlq.sink == stage.name

    def _check_alone(self, body: PipelineBody, graph: _Graph) -> None:
        """A pipeline that maps topics has no other way from its sources to tables."""
        spec, base = self._spec(), self._resource.base
        for key in ("steps", "sink", "transforms", "sinks", "edges"):
            only_for_letters = key == "sinks" and all(
                self._is_named_in_dlq(body, stage) for stage in graph.stages if stage.kind == "sink"
            )
            if spec.get(key) and not only_for_letters:
                message = f"{MAPPING!r} of the source writes to tables by itself; remove {key!r}, or {MAPPING!r}"
                self._written.at((*base, key), message, key=True)
        for stage, place in zip(graph.stages, graph.places, strict=True):
            if stage.kind == "source" and not self._maps_topics(stage):
                message = f"{stage.name!r} maps no topics, and another source does; put it into a pipeline of its own"
                self._written.at(place, message)

    def _mapping(self, source: Stage, place: Path) -> WrittenMapping | None:
        """Where the mapping of a source stands. None if it is not valid, which has been reported."""
        operator = self._operators.find("source", source.type)
        assert not isinstance(operator, str), "a source of no known type maps no topics"
        try:
            validate_options(operator, dict(source.options))
        except ValidationError:
            return None
        found = self._defined.get(source.name)
        if found is None:
            return WrittenMapping(self._written, (*place, MAPPING), is_abroad=False)
        nested = MAPPING not in found.written.document.keys_at(found.base)
        return WrittenMapping(found.written, (*found.base, *(("config",) if nested else ()), MAPPING), is_abroad=True)

    def _stage(self, entry: _Entry, name: str) -> Stage:
        if isinstance(entry.entry, StageSpec):
            options = self._operators.canonical(entry.kind, entry.entry.type, entry.entry.options)
            return Stage(name=name, kind=entry.kind, type=entry.entry.type, options=options)
        found = self._resources.find(KIND_OF[entry.kind], entry.entry, self._resource.namespace)
        if found is None:  # has been reported; the graph is checked all the same
            return Stage(name=name, kind=entry.kind, type="")
        self._defined[name] = found
        return Stage(name=name, kind=entry.kind, type=found.type, options=found.options)

    def _add_dead_letter_sink(self, graph: _Graph, reference: str) -> None:
        """The sink that `dlq` names: a stage of the pipeline, or a Sink resource that becomes one."""
        path = (*self._resource.base, "dlq", "sink")
        stage = next((stage for stage in graph.stages if stage.name == reference), None)
        if stage is not None:
            if stage.kind == "sink" and sum(other.kind == "sink" for other in graph.stages) > 1:
                graph.dead_letter_sink = stage.name
            elif stage.kind == "sink":
                message = f"{reference!r} takes the rows already; name another sink, which receives bad records only"
                self._written.at(path, message)
            else:
                self._written.at(path, f"{reference!r} is a {stage.kind}; dead letters go to a sink")
            return
        found = self._find(reference, "sink", path)
        if found is None:
            return
        name = stage_names([*((stage.name, "") for stage in graph.stages), (None, found.name)])[-1]
        self._defined[name] = found
        graph.stages.append(Stage(name=name, kind="sink", type=found.type, options=found.options))
        graph.places.append(path)
        graph.dead_letter_sink = name

    def _connect(self, body: PipelineBody, graph: _Graph) -> bool:
        """Add the edges. False if there are none to add, after remembering why."""
        line = [stage.name for stage in graph.stages if stage.name != graph.dead_letter_sink]
        base = self._resource.base
        if isinstance(body, GraphBody) and body.edges is not None:
            names = {stage.name for stage in graph.stages}
            for index, entry in enumerate(body.edges):
                graph.edges.append(_edge(entry, names))
                graph.edge_places.append((*base, "edges", index))
            return True
        if isinstance(body, GraphBody):
            if "edges" in self._spec():
                return False  # they are not valid, which has been reported
            sinks = [stage for stage in graph.stages if stage.kind == "sink" and stage.name != graph.dead_letter_sink]
            if len(body.sources) != 1 or len(sinks) != 1:
                counted = f"{len(body.sources)} source{'s' * (len(body.sources) > 1)} and {len(sinks)} sinks"
                message = f"the key 'edges' is missing; {counted} can be connected in more than one way"
                self._written.at((*base, "sources"), message, key=True)
                return False
            order = {"source": 0, "transform": 1, "sink": 2}
            kinds = {stage.name: order[stage.kind] for stage in graph.stages}
            line.sort(key=lambda name: kinds[name])
        for source, target in pairwise(line):
            graph.edges.append(Edge(source, target))
            graph.edge_places.append(graph.places[0])
        return True

    def _outputs(self, graph: _Graph) -> dict[str, tuple[str, ...]]:
        """The extra outputs by stage. A stage whose operator is not known is left out: anything goes."""
        known = {}
        for stage in graph.stages:
            outputs = self._operators.outputs(stage.kind, stage.type, stage.options) if stage.type else None
            if outputs is not None:
                known[stage.name] = outputs
        return known

    def _check_conditions(self, graph: _Graph) -> None:
        for edge, path in zip(graph.edges, graph.edge_places, strict=True):
            if edge.when is not None and (why := condition_problem(edge.when)) is not None:
                self._written.at((*path, "when"), why)

    def _check_contract(self, body: PipelineBody, graph: _Graph) -> None:
        """A contract that no sink keeps would be ignored in silence."""
        sinks = [stage for stage in graph.stages if stage.kind == "sink" and stage.name != graph.dead_letter_sink]
        if body.schema_.contract != SchemaContract() and not any(
            isinstance(operator := self._operators.find("sink", sink.type), str)
            or (issubclass(operator, Sink) and operator.keeps_contract)
            for sink in sinks
        ):
            types = ", ".join(sorted({sink.type for sink in sinks}))
            message = f"'schema' is a contract of tables, and no sink here has one ({types}); leave it out"
            self._written.at((*self._resource.base, "schema"), message, key=True)

    def _check_copies(self, body: PipelineBody, graph: _Graph) -> None:
        """Refuse a sink of `dlq` that has no place for copies of dead letters."""
        for stage in graph.stages:
            operator = self._operators.find("sink", stage.type) if stage.name == graph.dead_letter_sink else ""
            if not isinstance(operator, str) and issubclass(operator, Sink) and operator.no_copies is not None:
                is_inline = body.dlq is not None and isinstance(body.dlq.sink, StageSpec)
                path = (*self._resource.base, "dlq", "sink", *(("type",) if is_inline else ()))
                self._written.at(path, f"{stage.type} cannot be the sink of dlq: {operator.no_copies}")

    def _report(self, finding: Finding, graph: _Graph) -> None:
        message = finding.message
        abroad = [
            f"{name} is defined in {self._defined[name].place}"
            for name in finding.cycle[:-1]
            if name in self._defined and self._defined[name].written.text is not self._written.text
        ]
        if abroad:
            message += f" ({', '.join(abroad)})"
        if finding.edge is not None:
            path = graph.edge_places[finding.edge]
            if isinstance(self._at(path), list):
                path = (*path, {"from": 0, "to": 1}.get(finding.end, -1))
            else:
                path = (*path, finding.end)
        else:
            assert finding.stage is not None
            path = graph.places[finding.stage]
            written = self._at(path)
            if isinstance(written, dict):
                path = (*path, "name" if "name" in written else "id" if "id" in written else "type")
        self._written.at(path, message)

    def _at(self, path: Path) -> Any:
        value = self._written.value
        for part in path:
            value = value[part]
        return value


def _entry(path: Path, kind: StageKind, entry: str | StageSpec, default: str) -> _Entry:
    if isinstance(entry, str):
        return _Entry(path, kind, entry, entry.rpartition("/")[2])
    return _Entry(path, kind, entry, default or entry.type)


def _edge(entry: EdgeSpec | tuple[str, str], names: set[str]) -> Edge:
    if isinstance(entry, EdgeSpec):
        source, output = resolve_output(entry.source, names)
        return Edge(source, entry.target, output, entry.when, entry.otherwise, entry.on_slow)
    source, output = resolve_output(entry[0], names)
    return Edge(source, entry[1], output or MAIN)
