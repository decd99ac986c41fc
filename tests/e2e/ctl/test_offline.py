"""Verbs that need no node, on what a real one has left: their output as files in golden/offline."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.ctl.calling import Said, ctl
from tests.e2e.ctl.golden_files import as_text, check, same
from tests.e2e.ctl.nodes import running


@dataclass(eq=False)
class Left:
    """What a stopped node has left, and a backup of it. id: of the backup."""

    home: Path
    id: str

    def call(self, line: str) -> tuple[list[str], Said]:
        named = {"ID": self.id, "HOME": str(self.home)}
        parts = [re.sub(r"\b(ID|HOME)\b", lambda found: named[found[1]], part) for part in line.split()]
        return parts, ctl(self.home, *parts)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    home = tmp_path_factory.mktemp("left")
    with running(home) as (node,):
        for key in ("a", "b"):
            assert node.ask("config", "put", key, "1").code == 0
        said = node.ask("backup", "create", "--store", f"file://{home}/backups", "-o", "json")
        in_use = node.ask("raft", "why-no-leader")
        assert in_use.code == 0
        refused = ctl(home, "raft", "verify", "--data-dir", "n1")
        assert refused.code == 1
        check("offline/verify-running", same(as_text(["raft", "verify", "--data-dir", "n1"], refused)))
        node.stop()
    return Left(home, json.loads(said.out)["backup"]["id"])


# Nobody knows how many entries a node has written at its start, so indices are not compared.
INDEX = re.compile(
    r"(?<=index\":)\d+|(?<=index: )\d+|(?<=commit\":)\d+|(?<=commit: )\d+|(?<=snapshots\":\[)\d+|(?<=^- )\d+$"
    r"|\b\d(?= of term)|(?<=^known committed   )\d|(?<=^snapshots         )\d|(?<=^state index  )\d"
    r"|(?<=############      )\d",
    re.MULTILINE,
)
STORE = "--store file://HOME/backups"
CALLS = {
    **{f"list-{form}": f"backup list {STORE} -o {form}" for form in ("table", "wide", "json", "yaml")},
    **{f"describe-{form}": f"backup describe ID {STORE} -o {form}" for form in ("table", "json", "yaml")},
    "list-nothing": "backup list --store file://HOME/n1",
    "list-nowhere": "backup list --store nowhere",
    "describe-unknown": f"backup describe 20200101T000000000Z-000000000001-000000 {STORE}",
    "validate": f"backup restore ID {STORE} --data-dir fresh --validate-only",
    "validate-over-another": f"backup restore ID {STORE} --data-dir n1 --validate-only",
    "cleanup-unasked": f"backup cleanup {STORE} --keep 1",
    "cleanup": f"backup cleanup {STORE} --keep 1 --yes",
    "restore-over-another": f"backup restore ID {STORE} --data-dir n1",
    "restore-other-cluster": f"backup restore ID {STORE} --data-dir fresh --expect-cluster c-other",
    "verify-nothing": "raft verify --data-dir nowhere",
    "recover-unasked": "raft recover --data-dir n1",
}


@pytest.mark.parametrize("name", CALLS)
def test_it_prints(left: Left, name: str) -> None:
    arguments, said = left.call(CALLS[name])
    assert "bug in conveyord" not in said.err
    check(f"offline/{name}", normal(left, arguments, said))


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_a_whole_node_is_verified(left: Left, form: str) -> None:
    arguments, said = left.call(f"raft verify --data-dir n1 -o {form}")
    assert said.code == 0
    text = re.sub(r"\b[0-9a-f]{16,}\b", "HEX", normal(left, arguments, said))
    check(f"offline/verify-{form}", text)


def test_a_restored_node_starts_as_its_own_cluster(left: Left) -> None:
    arguments, said = left.call(f"backup restore ID {STORE} --data-dir restored/n1")
    assert said.code == 0, said.err
    check("offline/restore", re.sub(r"\bn-[0-9a-f]{12}\b", "n-############", normal(left, arguments, said)))


def normal(left: Left, arguments: list[str], said: Said) -> str:
    """Without what differs from run to run."""
    text = same(as_text(arguments, said), {str(left.home): "HOME"})
    text = re.sub(r"\bh-[0-9a-f]{12}\b", "h-############", text)
    text = re.sub(r"(?<=bytes\":)\d+|(?<=_bytes: )\d+", "#", text)
    return INDEX.sub("#", text)
