"""What the tests of definitions share: a registry of sample operators, and the files of refused definitions."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.registry import GROUP, Registry

ERRORS = Path(__file__).resolve().parent.parent / "data" / "errors"
ENVIRON = {"DIR": "/data", "PORT": "8080", "TOKEN": "from-the-environment"}
HEAD = "apiVersion: conveyor.etl/v1\nkind: Pipeline\nmetadata: {name: quakes}\n"


def sample_registry() -> Registry:
    """The operators of tests/data/errors/sample_operators.py, which must be on sys.path, and some broken ones."""
    points = {
        "source.sample": "sample_operators:SampleSource",
        "transform.sample": "sample_operators:SampleTransform",
        "sink.sample": "sample_operators:SampleSink",
        "sink.only_sink": "sample_operators:SampleSink",
        "source.broken": "a_module_that_is_not_there:Source",
        "transform.not_an_operator": "sample_operators:CommitConfig",
        "transform.twice": "sample_operators:SampleTransform",
    }
    found = [EntryPoint(name, value, GROUP) for name, value in points.items()]
    return Registry.of([*found, EntryPoint("transform.twice", "sample_operators:Other", GROUP)])


def load(registry: Registry, *texts: str) -> list[Pipeline]:
    """The pipelines of `texts`, which stand for the files a.yaml, b.yaml and so on."""
    files = {f"{chr(ord('a') + index)}.yaml": text.encode() for index, text in enumerate(texts)}
    return parse_pipelines(files, registry=registry, environ=ENVIRON)


def files_of(case: Path) -> dict[str, bytes]:
    """The files of one refused definition: NAME.yaml, or everything in the directory NAME."""
    single = case.with_suffix(".yaml")
    if single.exists():
        return {single.name: single.read_bytes()}
    return {path.name: path.read_bytes() for path in sorted(case.with_suffix("").glob("*.yaml"))}
