"""Every verb at a real node: what it prints, in each form, as files in golden/node."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.e2e.ctl.calling import Said, ctl
from tests.e2e.ctl.golden_files import as_text, check, same
from tests.e2e.ctl.nodes import RunningNode, running
from tests.runtime.rpc.node_certificates import NodeAuthority

ROLES = ("viewer", "operator", "admin")
FIRST_INDEX = 40  # of what golden files show; what a node does when it starts is not always in the same order
CHANGING = re.compile(
    r"(?<=it is at )\d+|(?<=at index )[5-9]\d+|(?<=index\":)\d+|(?<=changed\":)\d+|(?<=^index     )\d+", re.MULTILINE
)
FORMATS = ("table", "wide", "json", "yaml")


@dataclass(eq=False)
class Cluster:
    """One node, and tokens for it by role. names: what differs from run to run, and what stands for it."""

    home: Path
    node: RunningNode
    tokens: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def call(self, *arguments: str, role: str = "admin", stdin: bytes | None = None) -> Said:
        token = ("--token", self.tokens[role]) if role in self.tokens else ("--data-dir", str(self.node.home))
        return ctl(self.home, *arguments, "--server", self.node.server, *token, stdin=stdin)

    def done(self, *arguments: str, role: str = "admin", stdin: bytes | None = None) -> Said:
        said = self.call(*arguments, role=role, stdin=stdin)
        assert said.code == 0, said.err
        return said

    def check(self, name: str, arguments: list[str], said: Said, *, is_changing: bool = False) -> None:
        """is_changing: other tests have changed something before, nobody knows how often."""
        text = same(as_text(arguments, said), {**self.names, str(self.home): "HOME"}, ages=True)
        text = CHANGING.sub("#", text) if is_changing else text
        check(f"node/{name}", text)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node with a few things of everything, asked for in a fixed order, so that indices are the same each time."""
    home = tmp_path_factory.mktemp("cluster")
    with running(home) as (node,):
        found = Cluster(home, node)
        first = json.loads(found.done("tokens", "create", "the first", "--role", "viewer", "-o", "json").out)["id"]
        found.done("tokens", "revoke", first, "--yes")
        found.done("tokens", "delete", first, "--yes")
        while json.loads(found.done("config", "put", "padding", "1", "-o", "json").out)["changed"] < FIRST_INDEX - 2:
            pass
        found.done("config", "delete", "padding", "--yes")
        made = {}
        for number, role in enumerate(ROLES):
            made[role] = json.loads(found.done("tokens", "create", f"the {role}", "--role", role, "-o", "json").out)
            found.names[made[role]["token"]] = f"TOKEN-{role}"
            found.names[made[role]["id"]] = f"{number}" * 12
        found.tokens = {role: one["token"] for role, one in made.items()}
        revoked = json.loads(
            found.done("tokens", "create", "a guest", "--role", "viewer", "--expires", "90d", "-o", "json").out
        )
        found.names[revoked["id"]] = "9" * 12
        found.done("tokens", "revoke", revoked["id"], "--yes")
        found.tokens["revoked"] = revoked["token"]
        found.done("config", "put", "app/limits", '{"rows": 7}', role="operator")
        found.done("config", "put", "app/logo", "-", role="operator", stdin=b"\x89PNG\r\n\x00\xff")
        found.done("config", "put", "motto", "Grüße, 世界", role="operator")
        found.done("config", "put", "app/limits", '{"rows": 8}', role="operator")
        found.done("settings", "set", "target_voters", "1")
        found.call("config", "delete", "app/limits", "--expect-index", "1", "--yes", role="operator")
        yield found


READS = {
    "status": "status",
    "status-all": "status --all",
    "members-list": "members list",
    "members-get": "members get n1",
    "config-list": "config list",
    "config-list-values": "config list --values --prefix app/",
    "config-get": "config get motto",
    "settings-list": "settings list",
    "audit-log": "audit-log --limit 9",
    "events": "events --topic config --topic settings --after 39",
    "raft-why-no-leader": "raft why-no-leader",
}


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("name", READS)
def test_a_reading_verb_prints(cluster: Cluster, name: str, output: str) -> None:
    arguments = [*READS[name].split(), "-o", output]
    cluster.done("config", "list")  # linearizable: the state has what was written until now
    said = cluster.call(*arguments)
    assert said.code == 0, said.err
    cluster.check(f"{name}-{output}", arguments, said)


@pytest.mark.parametrize("output", FORMATS)
def test_tokens_are_listed(cluster: Cluster, output: str) -> None:
    """Their order is that of their ids, which are random: here they are put in the order of what stands for them."""
    arguments = ["tokens", "list", "-o", output]
    said = cluster.done(*arguments)
    if output == "json":
        reply = json.loads(said.out)
        reply["tokens"].sort(key=lambda token: str(token["name"]))
        lines = json.dumps(reply).encode()
    elif output == "yaml":
        reply = yaml.safe_load(said.out)
        reply["tokens"].sort(key=lambda token: str(token["name"]))
        lines = yaml.safe_dump(reply, sort_keys=False).encode()
    else:
        head, *rows = said.out.splitlines(keepends=True)
        lines = head + b"".join(sorted(rows, key=lambda row: row.rsplit(b"  ")[-1]))
    cluster.check(f"tokens-list-{output}", arguments, said._replace(out=lines))


REFUSED = {
    "no-token": ("none", "config get motto"),
    "unknown-token": ("unknown", "config get motto"),
    "revoked-token": ("revoked", "config get motto"),
    "viewer-writes": ("viewer", "config put a 1"),
    "viewer-sees-tokens": ("viewer", "tokens list"),
    "operator-sets": ("operator", "settings set target_voters 3"),
    "no-entry": ("viewer", "config get app/limitz"),
    "bad-key": ("operator", "config put /a 1"),
    "dotted-key": ("operator", "config put a/../b 1"),
    "bad-key-get": ("operator", "config get a b"),
    "conflict": ("operator", "config put motto x --expect-index 1"),
    "exists": ("operator", "config put motto x --expect-index 0"),
    "delete-nothing": ("operator", "config delete nothing --yes"),
    "unknown-setting": ("admin", "settings set target_voter 3"),
    "even-setting": ("admin", "settings set target_voters 2"),
    "large-setting": ("admin", "settings set target_voters 11"),
    "unknown-member": ("admin", "members get n9"),
    "remove-unknown": ("admin", "members remove n9 --yes"),
    "remove-running": ("admin", "members remove n1 --yes"),
    "remove-last": ("admin", "members remove n1 --yes --force"),
    "demote-last": ("admin", "members demote n1"),
    "transfer-unknown": ("admin", "members transfer n9"),
    "transfer-to-nobody": ("admin", "members transfer"),
    "add-bad-address": ("admin", "members add nowhere"),
    "add-dead-address": ("admin", "members add 127.0.0.1:1"),
    "revoke-unknown": ("admin", "tokens revoke 777777777777 --yes"),
    "last-admin": ("admin", "tokens revoke 222222222222 --yes"),
    "delete-in-use": ("admin", "tokens delete 222222222222 --yes"),
    "token-name": ("admin", "tokens create  --role viewer"),
    "events-of-the-future": ("viewer", "events --after 99999"),
    "events-of-another-history": ("viewer", "events --after 1 --history h-other"),
    "backup-store": ("admin", "backup create --store ftp://x/y"),
    "backup-viewer": ("viewer", "backup create --store file:///tmp/x"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_node_refuses(cluster: Cluster, name: str) -> None:
    role, line = REFUSED[name]
    arguments = line.split(" ")
    ids = {shown: id_ for id_, shown in cluster.names.items()}
    asked = [ids.get(argument, argument) for argument in arguments]
    if role == "none":
        said = ctl(cluster.home, *asked, "--server", cluster.node.server)
    elif role == "unknown":
        token = f"cvd_000000000000_{'x' * 43}"
        said = ctl(cluster.home, *asked, "--server", cluster.node.server, "--token", token)
    else:
        said = cluster.call(*asked, role=role)
    assert said.code in (1, 2), said
    assert "bug in conveyord" not in said.err
    cluster.check(f"refused-{name}", arguments, said, is_changing=True)


def test_the_raw_value_is_the_bytes_that_were_put(cluster: Cluster) -> None:
    assert cluster.done("config", "get", "app/logo", "--raw").out == b"\x89PNG\r\n\x00\xff"
    assert cluster.done("config", "get", "app/limits", "--raw", role="viewer").text == '{"rows": 8}'


def test_keys_of_any_shape_get_there(cluster: Cluster) -> None:
    for key in ("_", "a.b-c_d/E9", "...", ".a/..b", "k" * 512):
        cluster.done("config", "put", key, "v" * len(key), role="operator")
        assert cluster.done("config", "get", key, "--raw").text == "v" * len(key)
        cluster.done("config", "delete", key, "--yes", role="operator")
        assert cluster.call("config", "get", key).code == 1


def test_values_of_any_size_get_there(cluster: Cluster, tmp_path: Path) -> None:
    for content in (b"", b"\x00", bytes(range(256)) * 1024):
        (tmp_path / "value").write_bytes(content)
        cluster.done("config", "put", "big", "--file", str(tmp_path / "value"), role="operator")
        assert cluster.done("config", "get", "big", "--raw").out == content
    cluster.done("config", "delete", "big", "--yes", role="operator")


WRITES = (
    ("config-put", "config put written 1"),
    ("config-put-expected", "config put written 2 --expect-index 0 -o json"),
    ("settings-set", "settings set target_voters 1"),
    ("token-create", "tokens create a-robot --role operator"),
    ("config-delete", "config delete written --yes"),
    ("backup-create", "backup create --store file://HOME/backups"),
)


def test_writing_verbs_print_what_is_done_now(cluster: Cluster) -> None:
    for name, line in WRITES:
        if name == "config-put-expected":
            cluster.done("config", "delete", "written", "--yes")
        arguments = [part.replace("HOME", str(cluster.home)) for part in line.split()]
        said = cluster.done(*arguments)
        cluster.check(f"write-{name}", arguments, said, is_changing=True)


def test_what_is_printed_as_json_is_what_the_api_says(cluster: Cluster) -> None:
    import http.client

    host = cluster.node.server.removeprefix("http://")
    for verb, path in (
        ("settings list", "/settings"),
        ("tokens list", "/tokens"),
        ("config list", "/config?limit=1000"),
    ):
        connection = http.client.HTTPConnection(host)
        headers = {"authorization": f"Bearer {cluster.tokens['admin']}"}
        connection.request("GET", f"/api/v1{path}", headers=headers)
        answered = connection.getresponse().read()
        assert cluster.done(*verb.split(), "-o", "json").out == answered + b"\n"
        connection.close()


def test_an_expired_token_is_refused(cluster: Cluster) -> None:
    arguments = ["tokens", "create", "brief", "--role", "viewer", "--expires", "300ms", "-o", "json"]
    cluster.tokens["brief"] = json.loads(cluster.done(*arguments).out)["token"]
    while (said := cluster.call("config", "get", "motto", role="brief")).code == 0:
        pass
    cluster.check("refused-expired-token", ["config", "get", "motto"], said)


def test_a_node_with_tls_is_asked_by_a_context(tmp_path: Path) -> None:
    files = NodeAuthority(tmp_path).issue("localhost", is_uri=False)
    with running(tmp_path, tls=files) as (node,):
        token = node.ask("tokens", "create", "me", "--role", "operator").out
        added = ["context", "add", "lab", "--server", node.server, "--ca", str(files.ca), "--token", "-"]
        assert ctl(tmp_path, *added, stdin=token).code == 0
        assert ctl(tmp_path, "config", "put", "a", "1").code == 0
        assert ctl(tmp_path, "config", "get", "a", "--raw").text == "1"
        shown = ctl(tmp_path, "status", "--all")
        # Others are asked at the address that the cluster has of them, which is not in this certificate.
        assert shown.code == 4
        assert "the certificate of https://127.0.0.1" in shown.text
        plain = ctl(tmp_path, "status", "--server", node.server.replace("https", "http"))
        assert plain.sentence.endswith(
            "closed the connection without an answer (if it speaks TLS, write https://); ask again"
        )


def test_events_that_are_not_kept_are_told(cluster: Cluster) -> None:
    """The last test of this node: it has few events afterwards."""
    before = json.loads(cluster.done("settings", "list", "-o", "json").out)["index"]
    cluster.done("settings", "set", "events_max", "16")
    for number in range(40):
        cluster.done("config", "put", f"many/{number:02}", "1", role="operator")
    refused = cluster.call("events", "--after", str(before), "--topic", "config")
    assert refused.code == 1
    assert f"events behind {before} are not kept any more" in refused.sentence
    kept = cluster.done("events", "--topic", "config")
    told = re.match(r"events up to (\d+) are not kept any more\ngo on with: --after (\d+) --history c-", kept.err)
    assert told, kept.err
    keys = [line.split()[-1] for line in kept.text.splitlines()[1:]]
    assert keys == [f"many/{number:02}" for number in range(40 - len(keys), 40)]
    assert 0 < len(keys) <= 16
    pages = cluster.done("events", "--topic", "config", "-o", "json", "--limit", "3").text.splitlines()
    assert [event["key"] for page in pages for event in json.loads(page)["events"]] == keys[:3]
