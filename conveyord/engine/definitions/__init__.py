"""Pipeline definitions: from files to checked pipelines, or to everything that is wrong with them."""

from __future__ import annotations

from conveyord.engine.definitions.loading import DefinitionSet, load_pipelines, load_set, parse_pipelines, parse_set
from conveyord.engine.definitions.resources import Resource

__all__ = ["DefinitionSet", "Resource", "load_pipelines", "load_set", "parse_pipelines", "parse_set"]
