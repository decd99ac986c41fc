"""Who a node is, over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from conveyord.core.errors import Corrupt, Refused
from conveyord.storage.identity import FILE, Identity, keep_identity, take_identity
from conveyord.storage.raft_log.log import RaftLog


def test_a_node_keeps_its_id_and_never_has_an_incarnation_twice(tmp_path: Path) -> None:
    first = take_identity(tmp_path / "deep" / "data")
    assert first.incarnation == 1
    assert first.cluster is None
    keep_identity(tmp_path / "deep" / "data", Identity(first.node, first.incarnation, "c1"))
    assert take_identity(tmp_path / "deep" / "data") == Identity(first.node, 2, "c1")
    assert take_identity(tmp_path / "deep" / "data", node=first.node) == Identity(first.node, 3, "c1")


def test_ids_that_were_not_asked_for_differ(tmp_path: Path) -> None:
    assert take_identity(tmp_path / "a").node != take_identity(tmp_path / "b").node


def test_another_nodes_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    take_identity(tmp_path, node="n1")
    with pytest.raises(Refused, match="belongs to node n1, and node n2 was to be started"):
        take_identity(tmp_path, node="n2")
    assert take_identity(tmp_path).incarnation == 2


@pytest.mark.parametrize("node", ["", "-x", "a b", "x" * 65, "ä"])
def test_what_is_no_id_is_refused(tmp_path: Path, node: str) -> None:
    with pytest.raises(Refused, match="no id of a node"):
        take_identity(tmp_path, node=node)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"node": 1, "incarnation": 1}', b"\xff\xfe"])
def test_a_file_that_is_not_what_was_written_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(Corrupt, match="is not what was written"):
        take_identity(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_log_that_has_lost_its_identity_is_not_given_another(tmp_path: Path) -> None:
    """It would begin with incarnation 1 again, and the others would refuse it."""
    taken = take_identity(tmp_path, node="n1")
    (tmp_path / "raft").mkdir()
    RaftLog(tmp_path / "raft" / "raft.db", node=taken.node).close()
    (tmp_path / FILE).rename(tmp_path / "moved")
    before = sorted(tmp_path.rglob("*"))
    for node in (None, "n1", "n2"):
        with pytest.raises(Refused, match=r"has the log of .*and no node\.json.*; put node\.json back"):
            take_identity(tmp_path, node=node)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "moved").rename(tmp_path / FILE)
    assert take_identity(tmp_path).incarnation == 2
