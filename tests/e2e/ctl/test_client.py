"""The client says what the server understands: for every operation of the table, whatever the request."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from conveyord.api.client import asked_for
from conveyord.api.operation import Operation
from conveyord.api.operations import OPERATIONS
from conveyord.api.requests import request_of
from conveyord.api.routing import ROOT, Routes

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Whatever a field may be."""
    match kind:
        case inspect.UnionType(types=kinds):
            return st.one_of(*map(values, kinds))
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(ge=least, le=most):
            return st.integers(least if least is not None else -(2**63), most if most is not None else 2**63 - 1)
        case inspect.FloatType(ge=least, gt=above, le=most):
            low = least if least is not None else above if above is not None else 0.0
            return st.floats(low, most if most is not None else 1e9, exclude_min=above is not None)
        case inspect.BytesType():
            return st.binary(max_size=30)
        case inspect.LiteralType(values=choices):
            return st.sampled_from(choices)
        case inspect.StrType():
            return TEXTS
    raise AssertionError(kind)


def requests(operation: Operation[Any, Any]) -> st.SearchStrategy[Any]:
    """Any request of an operation. What its path names is not empty, or it would be another path."""
    told = inspect.type_info(operation.request)
    assert isinstance(told, inspect.StructType)
    fields = {
        field.name: values(field.type).filter(bool) if field.name in operation.path_fields else values(field.type)
        for field in told.fields
    }
    return st.builds(operation.request, **fields)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@given(data=st.data())
def test_a_request_arrives_as_it_was_sent(operation: Operation[Any, Any], data: st.DataObject) -> None:
    request = data.draw(requests(operation))
    asked = asked_for(operation, request)
    path, _, query = asked.target.partition("?")
    assert asked.target.isascii()
    assert asked.target.isprintable()
    assert " " not in asked.target
    route = Routes(OPERATIONS).find(asked.method, path.removeprefix(ROOT))
    assert route.operation is operation
    assert same(request_of(operation, route.fields, query, asked.body or b"", dict(asked.headers)), request)


def same(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of a float in a query."""
    for name in msgspec.structs.asdict(one):
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, float) and isinstance(right, float):
            if not math.isclose(left, right, rel_tol=1e-12, abs_tol=1e-12):
                return False
        elif left != right:
            return False
    return True
