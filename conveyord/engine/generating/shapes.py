"""The named shapes of rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from conveyord.engine.generating.columns import (
    Booleans,
    Choices,
    Column,
    Doubles,
    Lists,
    Longs,
    Nullable,
    Numbered,
    RowNumber,
    Struct,
    Ticks,
    Words,
)

START_MICROS = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z, when every shape's time begins
WIDE_COLUMNS = 200


def _trips() -> dict[str, Column]:
    """The records of benchmarks/records.py: flat fields, a nested one and a time."""
    return {
        "id": RowNumber(),
        "at": Ticks(START_MICROS, 37_000),
        "user": Numbered("u", 9, "@riders.example.com"),
        "country": Choices(("FR", "DE", "US", "BR", "JP", "IN", "NG", "MX")),
        "price": Doubles(1.0, 999.99, digits=2),
        "qty": Longs(1, 19),
        "status": Choices(("booked", "started", "finished", "cancelled")),
        "trip": Struct(
            {
                "device": Numbered("dev-", 4, "-android-14.2", distinct=5000),
                "x": Doubles(0.0, 1000.0, digits=6),
                "y": Doubles(0.0, 1000.0, digits=6),
                "ok": Booleans(8 / 9),
            }
        ),
    }


def _events() -> dict[str, Column]:
    """Nested objects, and lists of them: what a web shop's log looks like."""
    item = Struct({"sku": Numbered("sku-", 5), "qty": Longs(1, 5), "price": Doubles(1.0, 200.0, digits=2)})
    return {
        "id": RowNumber(),
        "at": Ticks(START_MICROS, 11_000),
        "kind": Choices(("view", "cart", "order", "refund")),
        "user": Struct(
            {
                "id": Longs(1, 10_000_000),
                "name": Words(10),
                "referrer": Nullable(Words(8, prefix="https://", distinct=500), 0.6),
                "tags": Lists(Choices(("new", "mobile", "eu", "beta", "vip", "trial")), 0, 3),
            }
        ),
        "items": Lists(item, 0, 4),
        "note": Nullable(Words(24), 0.8),
    }


def _metrics() -> dict[str, Column]:
    """Narrow rows of numbers."""
    return {
        "at": Ticks(START_MICROS, 1_000),
        "series": Longs(1, 10_000),
        "value": Doubles(-100.0, 100.0),
        "count": Longs(0, 1_000_000),
    }


def _wide() -> dict[str, Column]:
    """Two hundred columns of all kinds, every fifth of them with nulls."""
    kinds: tuple[tuple[str, Column], ...] = (
        ("long", Longs(0, 10**12)),
        ("double", Doubles(0.0, 1.0)),
        ("word", Words(8, distinct=1000)),
        ("flag", Booleans()),
        ("maybe", Nullable(Longs(0, 1000), 0.3)),
    )
    columns: dict[str, Column] = {"id": RowNumber()}
    for index in range(1, WIDE_COLUMNS):
        name, column = kinds[index % len(kinds)]
        columns[f"{name}_{index:03d}"] = column
    return columns


SHAPES: Mapping[str, Mapping[str, Column]] = MappingProxyType(
    {"trips": _trips(), "events": _events(), "metrics": _metrics(), "wide": _wide()}
)
