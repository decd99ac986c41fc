"""The JSON Schema (2020-12) of a definition file, from the models that the loader uses.

It accepts whatever the loader accepts, and refuses unknown keys, unknown operator types and wrong types of
values. What no schema can say (references, cycles, conditions, ranges of sizes with a suffix) is left to
`conveyord validate`. Alternatives are written as if/then on the key that decides, because editors complete, and
complain about, the branch that is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import CoreSchema, core_schema

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.manifest import GRAPH_KEYS, MODELS, GraphBody, LinearBody
from conveyord.core.pipeline.stages import ResourceSpec, StageSpec, check_name
from conveyord.core.units import parse_bytes, parse_seconds
from conveyord.engine.definition_keys import KIND_OF_KEY
from conveyord.engine.model_keys import keys_of
from conveyord.engine.reference import KINDS, description_of, written_default
from conveyord.engine.registry import Kind, Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REF = "#/$defs/{model}"

Schema = dict[str, Any]

_NUMBER = r"[0-9]+(\.[0-9]+)?"
_DURATION = rf"^\s*(?=[0-9])({_NUMBER}d)?({_NUMBER}h)?({_NUMBER}m)?({_NUMBER}s)?({_NUMBER}ms)?\s*$"
_SIZE = rf"^\s*({_NUMBER} ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)|[0-9]+)\s*$"
_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
_VARIABLE = "variable"
_CONSTRAINTS = ("enum", "const", "pattern", "minLength", "maxLength", "format")
_NOTES = ("title", "description", "default", "examples", "deprecated")


def definition_schema(registry: Registry) -> Schema:
    """The schema of one document with the operators of `registry`. Operators that cannot be loaded are left out."""
    configs = dict(_configs(registry))
    models: list[Any] = [*MODELS.values(), LinearBody, GraphBody, StageSpec, ResourceSpec, *configs.values()]
    refs, generated = models_json_schema(
        [(model, "validation") for model in models], ref_template=REF, schema_generator=_Generator
    )
    known: dict[Any, str] = {model: reference["$ref"].rsplit("/", 1)[1] for (model, _), reference in refs.items()}
    definitions: dict[str, Schema] = generated["$defs"]
    for (kind, type_name), config in configs.items():
        options = definitions[known[config]]
        definitions[f"{kind}.{type_name}"] = _with_keys(options, definitions[known[StageSpec]])
        definitions[f"{kind}.{type_name}.resource"] = _with_keys(options, definitions[known[ResourceSpec]])
    for kind in KINDS:
        types = {name: known[config] for (of, name), config in configs.items() if of == kind}
        definitions[f"{kind}-stage"] = _stage(kind, types, definitions[known[StageSpec]])
        definitions[f"{kind}-resource"] = _resource(kind, types, definitions[known[ResourceSpec]])
    _name_kinds(definitions, known)
    schema = {**_root(known), "$defs": definitions}
    return {"$schema": DIALECT, **_with_variables(_reachable(schema))}


def _configs(registry: Registry) -> Iterator[tuple[tuple[Kind, str], type[BaseModel]]]:
    for kind in KINDS:
        for type_name in registry.types(kind):
            try:
                yield (kind, type_name), registry.operator(kind, type_name).Config
            except ConfigError:
                continue  # the loader refuses it with the reason; here it is a type that does not exist


class _Generator(GenerateJsonSchema):
    """pydantic's generator, with units, other spellings of keys, and no titles."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Sizes and durations are text with a unit."""
        parser = schema["function"]["function"]
        if parser is parse_seconds:
            return {"type": "string", "pattern": _DURATION}
        if parser is parse_bytes:
            return {"anyOf": [self.generate_inner(schema["schema"]), {"type": "string", "pattern": _SIZE}]}
        return super().function_before_schema(schema)

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        """Names have their alphabet."""
        made = super().function_after_schema(schema)
        return {**made, "pattern": _NAME} if schema["function"]["function"] is check_name else made

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """A model with every spelling of its keys."""
        made = super().model_schema(schema)
        model = schema["cls"]
        made["description"] = description_of(model)
        if not made["description"]:
            del made["description"]
        return _with_spellings(made, model)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - overrides
        return False

    def handle_invalid_for_json_schema(self, schema: CoreSchema, error_info: str) -> JsonSchemaValue:  # noqa: ARG002
        """What a plugin's own types take, only the plugin knows."""
        return {}


def _with_spellings(made: Schema, model: type[BaseModel]) -> Schema:
    made.pop("title", None)
    properties, required = made.setdefault("properties", {}), set(made.get("required", ()))
    rules: list[Schema] = []
    for name, field in model.model_fields.items():
        canonical, *others = keys_of(name, field)
        if "default" in properties[canonical]:
            properties[canonical]["default"] = written_default(field)
        for other in others:
            note = {"description": f"Another spelling of `{canonical}`.", "deprecated": True}
            properties[other] = {**properties[canonical], **note}
        if others and canonical in required:
            required.discard(canonical)
            rules.append({"oneOf": [{"required": [key]} for key in (canonical, *others)]})
        elif others:
            rules.append(
                {"not": {"anyOf": [{"required": pair} for pair in map(list, combinations((canonical, *others), 2))]}}
            )
    made.pop("required", None)
    if required:
        made["required"] = sorted(required)
    if rules:
        made["allOf"] = [*made.get("allOf", ()), *rules]
    return made


def _with_keys(options: Schema, around: Schema) -> Schema:
    """A stage's own keys (`type`, `name`) and its operator's, in one mapping that takes no others."""
    made = {
        **options,
        "properties": {**options.get("properties", {}), **around["properties"]},
        "required": sorted({*options.get("required", ()), *around.get("required", ())}),
    }
    rules = [*options.get("allOf", ()), *around.get("allOf", ())]
    return {**made, "allOf": rules} if rules else made


def _stage(kind: Kind, types: Mapping[str, str], around: Schema) -> Schema:
    """A stage of a pipeline. Its type decides which other keys it has."""
    branches = [_if_key("type", name, {"$ref": f"#/$defs/{kind}.{name}"}) for name in types]
    return _typed(types, around, branches)


def _resource(kind: Kind, types: Mapping[str, str], around: Schema) -> Schema:
    """The `spec` of a resource: options beside the type, or all of them in `config`."""
    branches = []
    for name, config in types.items():
        nested = {
            "properties": {"type": {}, "config": {"$ref": f"#/$defs/{config}"}},
            "additionalProperties": False,
        }
        flat = {"$ref": f"#/$defs/{kind}.{name}.resource"}
        branches.append(_if_key("type", name, {"if": {"required": ["config"]}, "then": nested, "else": flat}))
    return _typed(types, around, branches)


def _typed(types: Mapping[str, str], around: Schema, branches: list[Schema]) -> Schema:
    properties = {**around["properties"], "type": {**around["properties"]["type"], "enum": list(types)}}
    return {"type": "object", "properties": properties, "required": ["type"], "allOf": branches}


def _if_key(key: str, value: str, then: Schema) -> Schema:
    return {"if": {"required": [key], "properties": {key: {"const": value}}}, "then": then}


def _name_kinds(definitions: dict[str, Schema], known: Mapping[type[BaseModel], str]) -> None:
    """Say of every place where a stage may stand which kind of stage it takes."""
    stage = REF.format(model=known[StageSpec])
    for definition in definitions.values():
        for key, kind in KIND_OF_KEY.items():
            if key in definition.get("properties", {}):
                inner = definition["properties"][key]
                entry = _inline_or_named(inner, stage, {"$ref": REF.format(model=f"{kind}-stage")})
                definition["properties"][key] = entry
    for name in ("Source", "Transform", "Sink"):
        definitions[known[MODELS[name]]]["properties"]["spec"] = {"$ref": f"#/$defs/{name.lower()}-resource"}
    linear, graph = (REF.format(model=known[model]) for model in (LinearBody, GraphBody))
    definitions[known[MODELS["Pipeline"]]]["properties"]["spec"] = {
        "type": "object",
        "if": {"anyOf": [{"required": [key]} for key in GRAPH_KEYS]},
        "then": {"$ref": graph},
        "else": {"$ref": linear},
    }


def _inline_or_named(value: Any, stage: str, wanted: Schema) -> Any:
    """`value` with each choice between a name and any stage (`stage`) made one between a name and the `wanted` one."""
    if isinstance(value, list):
        return [_inline_or_named(item, stage, wanted) for item in value]
    if not isinstance(value, dict):
        return value
    if {"$ref": stage} in value.get("oneOf", ()):
        notes = {key: item for key, item in value.items() if key in _NOTES}
        return {**notes, "type": ["string", "object"], "if": {"type": "object"}, "then": wanted}
    return {key: _inline_or_named(item, stage, wanted) for key, item in value.items()}


def _root(known: Mapping[type[BaseModel], str]) -> Schema:
    """The document: a resource of some kind, or a bare pipeline, told apart as the loader does."""
    refs = {name: {"$ref": REF.format(model=known[model])} for name, model in MODELS.items()}
    marked = {"anyOf": [{"required": ["apiVersion"]}, {"required": ["kind"]}]}
    bare = {"not": marked, "anyOf": [{"required": [key]} for key in GRAPH_KEYS]}
    kinds = [name for name in MODELS if name != "bare"]
    return {
        "title": "conveyord definition",
        "description": "One document of a definition file: a Pipeline, Source, Transform or Sink, or a bare pipeline.",
        "type": "object",
        "properties": {"apiVersion": {"const": "conveyor.etl/v1"}, "kind": {"enum": kinds}},
        "allOf": [
            *(_if_key("kind", name, refs[name]) for name in kinds),
            {
                "if": {"not": {"required": ["kind"]}},
                "then": {"if": bare, "then": refs["bare"], "else": refs["Pipeline"]},
            },
        ],
    }


def _reachable(schema: Schema) -> Schema:
    """`schema` without definitions that nothing refers to."""
    definitions: dict[str, Schema] = schema["$defs"]
    wanted = list(_references({key: value for key, value in schema.items() if key != "$defs"}))
    kept: dict[str, Schema] = {}
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = definitions[name]
            wanted += _references(kept[name])
    return {**schema, "$defs": dict(sorted(kept.items()))}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"].rsplit("/", 1)[1]
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _with_variables(schema: Schema) -> Schema:
    """`schema` with `${NAME}` allowed wherever a scalar of another type, or text of a certain form, is wanted."""
    made: Schema = _varied(schema)
    made["$defs"][_VARIABLE] = {
        "type": "string",
        "pattern": r"\$\{",
        "description": "A value with `${NAME}` or `${NAME:default}`, which is replaced from the environment.",
    }
    return made


def _varied(value: Any, *, condition: bool = False) -> Any:
    if isinstance(value, list):
        return [_varied(item, condition=condition) for item in value]
    if not isinstance(value, dict):
        return value
    if _is_scalar(value) and not condition:
        notes = {key: item for key, item in value.items() if key in _NOTES}
        wanted = {key: item for key, item in value.items() if key not in _NOTES}
        return {**notes, "anyOf": [wanted, {"$ref": REF.format(model=_VARIABLE)}]}
    made = {}
    for key, item in value.items():
        if key in ("properties", "$defs"):
            made[key] = {name: _varied(inner, condition=condition) for name, inner in item.items()}
        elif key in ("default", "examples", "enum", "const", "required"):
            made[key] = item
        else:
            made[key] = _varied(item, condition=condition or key in ("if", "not"))
    return made


def _is_scalar(schema: Schema) -> bool:
    """Whether `schema` is of scalars, other than text of any form."""
    kind = schema.get("type")
    if kind in ("integer", "number", "boolean"):
        return True
    if kind not in (None, "string"):
        return False
    return any(key in schema and not isinstance(schema[key], dict) for key in _CONSTRAINTS)
