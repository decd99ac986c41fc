"""Finds the tables of a catalog that hold fences of a pipeline, among those whose names fit. Blocking."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from conveyord.core.errors import Refused
from conveyord.core.planning.fence import fence_key
from conveyord.storage.lake.catalog import displaced
from conveyord.storage.lake.outcomes import within
from conveyord.storage.lake.table import DEADLINE_SECONDS
from conveyord.storage.lake.table_writer import catalog_errors

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

T = TypeVar("T")

FITTING_MAX = 10_000  # tables that are looked at; each costs a request or two

Part = str | re.Pattern[str]
"""One part of a table's name: as it is, or what the whole of it must match."""


def fenced_tables(catalog: Catalog, parts: Sequence[Part], *, pipelines: Sequence[str]) -> dict[str, frozenset[str]]:
    """By the name of each table that fits `parts`, those of `pipelines` that it holds fences of, if there are any.

    Raises Refused and Retryable as the catalog does; Refused for more tables than `FITTING_MAX`, and for those of
    a data directory that was moved.
    """
    found: dict[str, frozenset[str]] = {}
    for number, identifier in enumerate(_fitting(catalog, parts)):
        name = ".".join(identifier)
        if number >= FITTING_MAX:
            raise Refused(
                f"catalog {catalog.name!r}: more than {FITTING_MAX} tables have names like {name}; give those of this "
                "pipeline a namespace, or a part of their names, that others do not have"
            )
        table = _loaded(catalog, identifier)
        if table is None:
            continue
        holders = frozenset(one for one in pipelines if fence_key(one) in table.metadata.properties)
        if holders:
            found[name] = holders
    return found


def _fitting(catalog: Catalog, parts: Sequence[Part]) -> Iterator[tuple[str, ...]]:
    """The names of all tables that fit, sorted within their namespaces."""
    from pyiceberg.exceptions import NoSuchNamespaceError

    *above, last = parts
    for namespace in _namespaces(catalog, above):
        where = f"catalog {catalog.name!r}, namespace {'.'.join(namespace)}"
        try:
            names = _ask(where, partial(catalog.list_tables, namespace), NoSuchNamespaceError)
        except NoSuchNamespaceError:
            continue
        yield from sorted((*namespace, name[-1]) for name in names if _fits(name[-1], last))


def _namespaces(catalog: Catalog, parts: Sequence[Part]) -> Iterator[tuple[str, ...]]:
    """The namespaces that fit; one without a pattern in it need not exist."""
    from pyiceberg.exceptions import NoSuchNamespaceError

    known: list[tuple[str, ...]] = [()]
    for part in parts:
        if isinstance(part, str):
            known = [(*above, part) for above in known]
            continue
        below: list[tuple[str, ...]] = []
        for above in known:
            where = f"catalog {catalog.name!r}"
            try:
                names = _ask(where, partial(catalog.list_namespaces, above), NoSuchNamespaceError)
            except NoSuchNamespaceError:
                continue
            below += sorted({(*above, name[-1]) for name in names if len(name) > len(above) and _fits(name[-1], part)})
        known = below
    yield from known


def _fits(name: str, part: Part) -> bool:
    return name == part if isinstance(part, str) else part.fullmatch(name) is not None


def _loaded(catalog: Catalog, identifier: tuple[str, ...]) -> Table | None:
    """The table; None if it was dropped meanwhile, or is none of Iceberg's."""
    from pyiceberg.exceptions import NoSuchIcebergTableError, NoSuchTableError

    where = f"table {'.'.join(identifier)}"
    if (elsewhere := _ask(where, partial(displaced, catalog, identifier))) is not None:
        raise elsewhere
    try:
        return _ask(where, partial(catalog.load_table, identifier), NoSuchTableError, NoSuchIcebergTableError)
    except (NoSuchTableError, NoSuchIcebergTableError):
        return None


def _ask(what: str, work: Callable[[], T], *expected: type[Exception]) -> T:
    """What the catalog answers, within the deadline; its errors as sentences about `what`, but for those `expected`."""
    answer: list[T] = []
    passed: list[Exception] = []

    def asked() -> None:
        try:
            answer.append(work())
        except expected as error:
            passed.append(error)

    with catalog_errors(what):
        within(DEADLINE_SECONDS, asked)
    if passed:
        raise passed[0]
    return answer[0]
