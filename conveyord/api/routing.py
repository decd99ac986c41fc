"""Paths of the REST interface: which operation a method and a path mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from conveyord.api.codes import METHOD_NOT_ALLOWED, NO_SUCH_PATH, Declined
from conveyord.api.operation import Operation
from conveyord.runtime.http_faults import MALFORMED

ROOT = "/api/v1"
_FIELD = re.compile(r"\{(\w+)(:path)?\}")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Route(NamedTuple):
    """An operation, and what the path says of its request."""

    operation: Operation[Any, Any]
    fields: Mapping[str, str]


class NotAllowed(Declined):
    """A path that is there, for other methods."""

    def __init__(self, method: str, path: str, methods: Iterable[str]) -> None:
        self.allow = ", ".join(sorted(methods))
        super().__init__(METHOD_NOT_ALLOWED, f"{path} does not take {method}; it takes {self.allow}")


class Routes:
    """All of them."""

    def __init__(self, operations: Iterable[Operation[Any, Any]]) -> None:
        by_path = dict[str, dict[str, Operation[Any, Any]]]()
        for operation in operations:
            by_path.setdefault(operation.path, {})[operation.method] = operation
        # Those with fewer fields first: `/backups/cleanup` is not the backup `cleanup`.
        self._by_path = sorted(by_path.items(), key=lambda item: item[0].count("{"))
        self._patterns = [(_pattern(path), methods) for path, methods in self._by_path]

    def find(self, method: str, path: str) -> Route:
        """What is asked for. path: below `ROOT`, as it came. Raises Declined for what there is not."""
        for pattern, methods in self._patterns:
            if (found := pattern.fullmatch(path)) is None:
                continue
            operation = methods.get("GET" if method == "HEAD" else method)
            if operation is None:
                raise NotAllowed(method, ROOT + path, {*methods, *(("HEAD",) if "GET" in methods else ())})
            fields = {name: unquoted(value, name) for name, value in found.groupdict().items()}
            return Route(operation, fields)
        near = get_close_matches(path, [known for known, _ in self._by_path], n=1)
        hint = f"did you mean {ROOT}{near[0]}?" if near else f"{ROOT}/openapi.json says what there is"
        raise Declined(NO_SUCH_PATH, f"there is nothing at {(ROOT + path)[:200]}; {hint}")


def unquoted(text: str, name: str) -> str:
    """What percent-encoding stands for. Raises Declined if it stands for nothing."""
    if _PERCENT.search(text) is not None:
        raise Declined(MALFORMED, f"{text[:80]!r} has a % without two hexadecimal digits; write %25", field=name)
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise Declined(MALFORMED, f"{text[:80]!r} is not percent-encoded UTF-8", field=name) from None


def _pattern(path: str) -> re.Pattern[str]:
    parts, end = list[str](), 0
    for found in _FIELD.finditer(path):
        parts += [re.escape(path[end : found.start()]), f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})"]
        end = found.end()
    return re.compile("".join([*parts, re.escape(path[end:])]))
