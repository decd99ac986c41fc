"""From an HTTP request to what an operation is told, and nothing that it does not say. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from conveyord.api.codes import UNSUPPORTED_MEDIA_TYPE, Declined
from conveyord.api.operation import Operation
from conveyord.api.routing import unquoted
from conveyord.core.state.commands import COUNT_MAX
from conveyord.runtime.http_faults import MALFORMED

JSON = "application/json"
BODIES = frozenset({"POST", "PUT"})
"""Methods whose fields come in a JSON body; those of others come in the query."""
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")
_PATH = re.compile(r"(.*) - at `\$(?:\.([\w.\[\]]+))?`", re.DOTALL)


def request_of(
    operation: Operation[Any, Any], fields: Mapping[str, str], query: str, body: bytes, headers: Mapping[str, str]
) -> Any:
    """The request. fields: what the path says. query: as it came. headers: by lower-case name. Raises Declined."""
    if operation.method in BODIES:
        if query:
            raise Declined(
                MALFORMED, f"{operation.name} takes its fields in a JSON body, not in the query", field=query[:80]
            )
        given = _from_body(body, headers)
    else:
        if body:
            raise Declined(MALFORMED, f"{operation.name} takes its fields in the query, not in a body", field="body")
        given = _from_query(operation, query)
    for name, value in fields.items():
        if name in given:
            raise Declined(MALFORMED, f"{name} is in the path already; leave it out here", field=name)
        given[name] = value
    _expect(operation, given, headers)
    try:
        return msgspec.convert(given, operation.request)
    except msgspec.ValidationError as error:
        raise wrong(error) from None


def wrong(error: msgspec.ValidationError) -> Declined:
    """What msgspec does not accept, as a sentence and the field that it is about."""
    found = _PATH.fullmatch(str(error))
    reason, field = (found[1], found[2] or "") if found else (str(error), "")
    if not field and (named := re.search(r"field `(\w+)`", reason)):
        field = named[1]
    return Declined(MALFORMED, f"{field or 'the request'}: {reason[0].lower()}{reason[1:]}", field=field)


def _from_body(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    if not body:
        return {}
    media = re.sub(r"\s", "", headers.get("content-type", "")).lower()
    if media not in {JSON, f"{JSON};charset=utf-8", f'{JSON};charset="utf-8"'}:
        raise Declined(UNSUPPORTED_MEDIA_TYPE, f"the content type is {media[:80] or 'not told'!r}; send {JSON}")
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        raise Declined(UNSUPPORTED_MEDIA_TYPE, f"the content encoding is {encoding[:80]!r}; send the body as it is")
    try:
        msgspec.json.decode(body)  # takes the last of two fields of one name; json takes halves of surrogate pairs
        given = json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number, parse_float=_number_of
        )
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise Declined(MALFORMED, f"the body is no JSON: {error}", field="body") from None
    if not isinstance(given, dict):
        raise Declined(MALFORMED, "the body is no JSON object; send the fields of the request in one", field="body")
    return given


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {double!r} is there twice")
    return found


def _number_of(text: str) -> float | int:
    """JSON does not tell 1.0 from 1."""
    found = float(text)
    return int(found) if found.is_integer() else found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _from_query(operation: Operation[Any, Any], query: str) -> dict[str, Any]:
    given = dict[str, Any]()
    kinds = _kinds(operation)
    for pair in query.split("&") if query else ():
        raw_name, has_value, raw_value = pair.partition("=")
        name = unquoted(raw_name.replace("+", " "), "query")
        value = unquoted(raw_value.replace("+", " "), name)
        if name in given:
            raise Declined(MALFORMED, f"{name} is in the query twice; write it once", field=name)
        if name not in kinds or name in operation.path_fields:
            known = ", ".join(kind for kind in kinds if kind not in operation.path_fields) or "nothing"
            raise Declined(
                MALFORMED, f"{operation.name} does not take {name!r} in its query; it takes {known}", field=name
            )
        given[name] = kinds[name](name, value if has_value else "")
    return given


def _expect(operation: Operation[Any, Any], given: dict[str, Any], headers: Mapping[str, str]) -> None:
    """`If-Match: "N"` and `If-None-Match: *` say `expect_index` in the words of HTTP."""
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    if (match is None and none_match is None) or operation.is_read:
        return
    name = "If-Match" if match is not None else "If-None-Match"
    if "expect_index" not in operation.request.__struct_fields__:
        raise Declined(MALFORMED, f"{operation.name} knows no versions; leave {name} out", field=name)
    if given.get("expect_index") is not None or (match is not None and none_match is not None):
        raise Declined(MALFORMED, "the expected version is told twice; tell it once", field=name)
    found = re.fullmatch(r'"([0-9]{1,19})"', match or "")
    if match is not None and (found is None or not 0 < int(found[1]) <= COUNT_MAX):
        raise Declined(MALFORMED, f'If-Match: {match[:80]}; write the ETag of one version, as "42"', field=name)
    if none_match is not None and none_match.strip() != "*":
        raise Declined(
            MALFORMED, f"If-None-Match: {none_match[:80]}; only * is known here: it must not exist", field=name
        )
    given["expect_index"] = int(found[1]) if found else 0


Parse = Callable[[str, str], Any]


@cache
def _kinds(operation: Operation[Any, Any]) -> dict[str, Parse]:
    """How the text of each field is read in a query."""
    described = inspect.type_info(operation.request)
    assert isinstance(described, inspect.StructType)
    return {field.encode_name: _kind(field.type) for field in described.fields}


def _kind(described: inspect.Type) -> Parse:
    if isinstance(described, inspect.UnionType):
        (described,) = (one for one in described.types if not isinstance(one, inspect.NoneType))
    if isinstance(described, inspect.BoolType):
        return _boolean
    if isinstance(described, inspect.IntType):
        return _integer
    if isinstance(described, inspect.FloatType):
        return _number
    assert isinstance(described, inspect.StrType), described
    return lambda _, text: text


def _boolean(name: str, text: str) -> bool:
    if text not in {"true", "false"}:
        raise Declined(MALFORMED, f"{name}: {text[:80]!r} is neither true nor false", field=name)
    return text == "true"


def _integer(name: str, text: str) -> int:
    if _INTEGER.fullmatch(text) is None:
        raise Declined(MALFORMED, f"{name}: {text[:80]!r} is no whole number", field=name)
    return int(text)


def _number(name: str, text: str) -> float:
    if _NUMBER.fullmatch(text) is None:
        raise Declined(MALFORMED, f"{name}: {text[:80]!r} is no number", field=name)
    return float(text)
