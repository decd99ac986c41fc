"""OpenAPI 3.1 from the operation table. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from conveyord import __version__
from conveyord.api.codes import STATUSES
from conveyord.api.operation import Operation
from conveyord.api.requests import BODIES, JSON
from conveyord.api.routing import ROOT

REFS = "#/components/schemas/{name}"
BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
SCHEME = "token"
_PATH_FIELD = re.compile(r"\{(\w+):path\}")
PROBLEM: Mapping[str, Any] = {
    "type": "object",
    "description": "RFC 9457. `code` is what to match on; `detail` is a sentence that names the remedy.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "examples": sorted(STATUSES)},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "The path that was asked for."},
        "field": {"type": "string", "description": "The part of the request that is at fault."},
    },
}


def openapi(operations: Iterable[Operation[Any, Any]], *, needs_token: bool = True) -> dict[str, Any]:
    """The document, as JSON has it. needs_token: of the node that is asked; False with open access."""
    known = tuple(operations)
    kinds = [operation.reply for operation in known] + [one.request for one in known if one.method in BODIES]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REFS)
    for operation in known:
        if operation.method in BODIES:
            _leave_out(schemas[operation.request.__name__], operation.path_fields)
    paths = dict[str, dict[str, Any]]()
    for operation in known:
        path = ROOT + _PATH_FIELD.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "conveyord",
            "version": __version__,
            "description": "What a node can be asked. Any node answers; every answer has the `index` of the state that "
            "it reflects, in its body and in the header `Conveyord-Index`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{SCHEME: []}] if needs_token else [],
        "paths": paths,
        "components": {
            "schemas": {**_mended(schemas), "Problem": PROBLEM},
            "securitySchemes": {
                SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`cvd_<id>_<secret>`.",
                }
            },
        },
    }


def _operation(operation: Operation[Any, Any]) -> dict[str, Any]:
    name = operation.request.__name__
    schema = _mended(msgspec.json.schema(operation.request)["$defs"][name])
    found: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.name.partition(".")[0]],
        "summary": operation.summary,
        "description": f"{_doc(operation.request)} Needs the role `{operation.role}`.",
        "x-conveyord-role": operation.role,
        "x-conveyord-idempotent": operation.is_idempotent,
        "parameters": _parameters(operation, schema),
        "responses": _responses(operation),
    }
    if operation.method in BODIES:
        _leave_out(schema, operation.path_fields)
        found["requestBody"] = {
            "required": bool(schema["required"]),
            "content": {JSON: {"schema": {"$ref": REFS.format(name=name)}}},
        }
    return found


def _parameters(operation: Operation[Any, Any], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    parameters = list[dict[str, Any]]()
    for name, described in schema["properties"].items():
        if name in operation.path_fields:
            # What an id or a key looks like is the state's matter; no name is empty, though.
            found = {"in": "path", "required": True, "schema": {**described, "minLength": 1}}
        elif operation.method not in BODIES:
            found = {"in": "query", "required": name in schema["required"], "schema": _without_null(described)}
        else:
            continue
        parameters.append({"name": name, **found})
    return parameters


def _responses(operation: Operation[Any, Any]) -> dict[str, Any]:
    header = {"Conveyord-Index": {"schema": {"type": "integer", "minimum": 0}}}
    problem = {"application/problem+json": {"schema": {"$ref": REFS.format(name="Problem")}}}
    responses: dict[str, Any] = {
        "200": {
            "description": _doc(operation.reply),
            "headers": header,
            "content": {JSON: {"schema": {"$ref": REFS.format(name=operation.reply.__name__)}}},
        }
    }
    by_status = dict[int, list[str]]()
    for code, (status, _) in STATUSES.items():
        by_status.setdefault(status.value, []).append(code)
    for number, codes in sorted(by_status.items()):
        responses[str(number)] = {"description": f"A problem: {', '.join(sorted(codes))}.", "content": problem}
    return responses


def _without_null(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a parameter, which is left out rather than null."""
    if "anyOf" not in schema:
        return schema
    (found,) = (one for one in schema["anyOf"] if one != {"type": "null"})
    return dict(found)


def _doc(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split())


def _leave_out(schema: dict[str, Any], names: Iterable[str]) -> None:
    """A body does not repeat what the path says."""
    for name in names:
        schema["properties"].pop(name, None)
        if name in schema.get("required", ()):
            schema["required"].remove(name)


def _mended(schema: Any) -> Any:
    """What msgspec says, as JSON has it, and what base64 looks like."""
    if isinstance(schema, dict):
        mended = {name: _mended(value) for name, value in schema.items()}
        if schema.get("contentEncoding") == "base64":
            mended["pattern"] = BASE64
        return mended
    return [_mended(one) for one in schema] if isinstance(schema, list | tuple) else schema
