"""docs/api.md says what the node does. `CONVEYORD_WRITE_DOCS=1` writes its tables anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

from conveyord.api.codes import STATUSES
from conveyord.api.operation import Where
from conveyord.api.operations import OPERATIONS
from conveyord.api.routing import ROOT
from tests.api.rig import serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def operations_table() -> str:
    rows = ["| operation | REST | role | | what it does |", "|---|---|---|---|---|"]
    for one in OPERATIONS:
        kinds = ["read" if one.is_read else "change"]
        kinds += ["at the leader"] if one.where is Where.LEADER else []
        kinds += ["repeatable"] if one.is_idempotent and not one.is_read else []
        rows.append(
            f"| `{one.name}` | `{one.method} {ROOT}{one.path}` | {one.role} | {', '.join(kinds)} | {one.summary} |"
        )
    return "\n".join(rows)


def codes_table() -> str:
    rows = ["| code | status | what it means |", "|---|---|---|"]
    rows += [f"| `{code}` | {status.value} | {meaning} |" for code, (status, meaning) in STATUSES.items()]
    return "\n".join(rows)


def written(text: str, name: str, table: str) -> str:
    """`text` with a table at its place."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    made, count = pattern.subn(lambda found: f"{found[1]}{table}\n{found[2]}", text)
    assert count == 1, name
    return made


def check(name: str, table: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    made = written(text, name, table)
    if os.environ.get("CONVEYORD_WRITE_DOCS"):
        PAGE.write_text(made, encoding="utf-8")
    assert made == text, "docs/api.md is out of date; run this test with CONVEYORD_WRITE_DOCS=1"


def test_the_page_has_all_operations() -> None:
    check("operations", operations_table())


def test_the_page_has_all_codes() -> None:
    check("codes", codes_table())


async def test_the_page_has_all_metrics(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        text = (await node.http.get("/metrics")).text
    helps = dict(re.findall(r"# HELP (conveyord_\w+) (.*)", text))
    kinds = dict(re.findall(r"# TYPE (conveyord_\w+) (\w+)", text))
    rows = ["| metric | kind | what it is |", "|---|---|---|"]
    rows += [f"| `{name}` | {kinds[name]} | {what} |" for name, what in helps.items() if not name.endswith("_created")]
    check("metrics", "\n".join(rows))
