"""From checked pipelines to the operators of one run: what is shared, and what each stage is given."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import trio

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.graph import MAIN, Pipeline, SchemaContract, Stage
from conveyord.core.pipeline.optimiser import Plan, PlanEdge, Salt, share
from conveyord.engine.conditions import RowCondition
from conveyord.engine.contracts import Operator, OperatorContext, Retries
from conveyord.engine.dead_lettering import LetterBox, StageLetters
from conveyord.engine.registry import Registry, stage_config
from conveyord.engine.routing import Exit


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What surrounds the pipelines of one run. `threads` bounds its CPU-bound work."""

    data_dir: Path
    threads: trio.CapacityLimiter
    skip_bad: bool = False
    adopt_from: str | None = None
    catalogs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assembly:
    """The operators of a plan, constructed but not opened.

    names: by pipeline, the run's name of each of its sources to its own. They differ only where pipelines
    that run together share a source, or have different ones of one name.
    """

    plan: Plan
    operators: Mapping[int, Operator]
    exits: Mapping[PlanEdge, Exit]
    names: Mapping[str, Mapping[str, str]]

    def sinks_below(self, number: int) -> list[int]:
        """The sink nodes that rows of a node reach, itself included."""
        reached = {number}
        for node in self.plan.nodes:  # each after those it gets rows from
            if any(edge.source in reached for edge in self.plan.edges_to(node.number)):
                reached.add(node.number)
        return [one for one in sorted(reached) if self.plan.nodes[one].stage.kind == "sink"]


def assemble(
    pipelines: Sequence[Pipeline], registry: Registry, settings: RunSettings, box: LetterBox | None = None
) -> Assembly:
    """The operators that run `pipelines` together.

    box: where the dead letters of those go that keep them. Raises ConfigError for what an operator or a
    condition refuses.
    """
    by_identity = {pipeline.identity: pipeline for pipeline in pipelines}
    plan = share(pipelines, share_salt(registry))
    run_names = _run_names(plan)
    names: dict[str, dict[str, str]] = {identity: {} for identity in by_identity}
    for number, name in run_names.items():
        for member in plan.nodes[number].members:
            names[member.pipeline][name] = member.stage
    operators = {}
    for node in plan.nodes:
        pipeline, stage = by_identity[node.pipelines[0]], node.stage
        retries, letters = Retries(), None
        if pipeline.dlq is not None:
            retries = Retries(pipeline.dlq.max_retries, pipeline.dlq.retry)
            if box is not None:
                letters = StageLetters(box, {member.pipeline: member.stage for member in node.members}, names)
        context = OperatorContext(
            pipeline=pipeline.identity,
            stage=run_names.get(node.number, stage.name),
            data_dir=settings.data_dir,
            threads=settings.threads,
            skip_bad=settings.skip_bad,
            catalogs=settings.catalogs,
            provenance=keeps_provenance(stage) or (stage.kind == "source" and wants_provenance(pipeline, stage)),
            adopt_from=settings.adopt_from,
            listened=frozenset(edge.edge.output for edge in plan.edges_from(node.number)) - {MAIN},
            dead_letters=letters,
            retries=retries,
            contract=_contract_of(pipeline, stage),
            names={member.pipeline: member.stage for member in node.members},
        )
        operator = registry.operator(stage.kind, stage.type)
        operators[node.number] = operator(stage_config(operator, dict(stage.options), stage=stage.name), context)
    return Assembly(plan, operators, {edge: _exit(edge) for edge in plan.edges}, names)


def _run_names(plan: Plan) -> dict[int, str]:
    """What each source is called in this run: its own name, unless two sources have that name."""
    sources = [node for node in plan.nodes if node.stage.kind == "source"]
    known = Counter(node.stage.name for node in sources)
    return {
        node.number: node.stage.name if known[node.stage.name] == 1 else f"{node.pipelines[0]}:{node.stage.name}"
        for node in sources
    }


def _exit(edge: PlanEdge) -> Exit:
    condition = None
    if edge.edge.when is not None:
        condition = RowCondition(edge.edge.when, setting=f"the condition of {edge.edge.source} -> {edge.edge.target}")
    return Exit(edge.edge, frozenset(edge.members), condition)


def _contract_of(pipeline: Pipeline, stage: Stage) -> SchemaContract:
    """What a stage holds rows to. The columns of dead letters are ours, so their sink takes them as they are."""
    is_for_letters = pipeline.dlq is not None and pipeline.dlq.sink == stage.name
    return SchemaContract() if is_for_letters else pipeline.schema


def share_salt(registry: Registry) -> Salt:
    """What stages do beyond their options: how they treat bad records, and whether rows carry provenance."""

    def salt(pipeline: Pipeline, stage: Stage) -> str | None:
        operator = registry.operator(stage.kind, stage.type)
        try:
            config = stage_config(operator, dict(stage.options), stage=stage.name)
        except ConfigError:  # a secret that this machine lacks: whoever runs the stage says so
            return None
        if not operator.is_pure(config):
            return None
        policy = None if pipeline.dlq is None else (pipeline.dlq.max_retries, asdict(pipeline.dlq.retry))
        return json.dumps([pipeline.mode, policy, stage.kind == "source" and wants_provenance(pipeline, stage)])

    return salt


def wants_provenance(pipeline: Pipeline, source: Stage) -> bool:
    """Whether a sink that `source` reaches asks for the columns that say where rows came from."""
    reached = {source.name}
    for stage in pipeline.stages:  # every edge points forward
        if any(edge.source in reached for edge in pipeline.edges_to(stage.name)):
            reached.add(stage.name)
    return any(sink.name in reached and keeps_provenance(sink) for sink in pipeline.of_kind("sink"))


def keeps_provenance(stage: Stage) -> bool:
    """Whether a sink asks for the provenance columns."""
    return stage.options.get("provenance") is True
