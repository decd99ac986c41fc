"""What a user reads when a bucket, a key, a right or an address is wrong: one sentence about it, and no secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Ended, Job, conveyord, lines
from tests.storage.faulty_proxy import FOR_EVER, Fault, Store, faulty
from tests.storage.object_stores import SECRET, TOKEN, Kind, Server, Servers, servers_below

KINDS = ["moto", *(pytest.param(kind, marks=pytest.mark.check) for kind in ("versitygw", "gcs"))]
# Google's client tries again for half a minute before it gives an address up.
REACHED = ["moto", pytest.param("versitygw", marks=pytest.mark.check), pytest.param("gcs", marks=pytest.mark.soak)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers_below(tmp_path_factory.mktemp("stores")) as found:
        yield found


@pytest.fixture
def server(servers: Servers, kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    # Neither this machine's credentials nor a look for those of a cloud's.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return servers.get(kind)


def run(home: Path, properties: dict[str, str]) -> Ended:
    files = {"type": "sql", "uri": f"sqlite:///{home / 'c.db'}", **properties}
    listed = "".join(f'"{key}" = "{value}"\n' for key, value in files.items())
    (home / "conveyord.toml").write_text(f"[catalogs.tried]\n{listed}", encoding="utf-8")
    job = Job(home, sink={"catalog": "tried"})
    (job.input / "a.jsonl").write_bytes(lines(range(10)))
    ended = conveyord("run", job.file, "--data-dir", job.data_dir, "-o", "json", cwd=home)
    assert SECRET not in ended.err + ended.out
    assert TOKEN not in ended.err + ended.out
    return ended


def endpoint_key(server: Server) -> str:
    return "gcs.service.host" if server.kind == "gcs" else "s3.endpoint"


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_that_is_not_there_is_named_with_its_address(tmp_path: Path, server: Server) -> None:
    properties = {**server.properties(), "warehouse": f"{server.scheme}://no-such-bucket/wh"}
    told = run(tmp_path, properties).failed("table ns.t", "no bucket 'no-such-bucket'", "correct warehouse")
    assert server.endpoint in told


def denying(tmp_path: Path, store: Store, path: str) -> str:
    store.faults += [Fault("403", method, path, FOR_EVER) for method in ("PUT", "POST")]
    told = run(tmp_path, store.properties()).failed("table ns.t", "denies access to the bucket 'lake'", "check ")
    assert store.endpoint in told
    return told


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_may_not_be_created_names_the_keys_to_look_at(tmp_path: Path, server: Server) -> None:
    with faulty(server) as store:
        assert "write, list and delete below" in denying(tmp_path, store, "/metadata/")


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_may_not_be_written_is_no_bug_of_ours(tmp_path: Path, server: Server) -> None:
    with faulty(server) as store:
        denying(tmp_path, store, "/data/")


@pytest.mark.parametrize("kind", REACHED)
def test_an_address_where_nothing_answers_is_named(tmp_path: Path, server: Server) -> None:
    properties = {**server.properties(), endpoint_key(server): "http://127.0.0.1:1"}
    told = run(tmp_path, properties).failed("http://127.0.0.1:1 cannot be reached", "then run again")
    assert endpoint_key(server) in told


@pytest.mark.check
@pytest.mark.parametrize("kind", ["versitygw"])
@pytest.mark.parametrize("missing", [True, False])
def test_wrong_and_missing_keys_name_the_settings(tmp_path: Path, server: Server, missing: bool) -> None:
    """moto takes every key, fake-gcs-server every token."""
    properties = {**server.properties(), "s3.secret-access-key": "not-the-secret"}
    if missing:
        properties = {key: value for key, value in properties.items() if "key" not in key}
    told = run(tmp_path, properties).failed("denies access", "s3.access-key-id and s3.secret-access-key")
    assert "not-the-secret" not in told


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["gcs"])
def test_a_machine_without_google_credentials_is_told_so(tmp_path: Path, server: Server) -> None:
    properties = {key: value for key, value in server.properties().items() if "oauth2" not in key}
    run(tmp_path, properties).failed("no credentials were found for the bucket 'lake'", "gcs.oauth2.token")


@pytest.mark.parametrize("kind", ["moto"])
def test_a_google_token_without_its_end_is_refused(tmp_path: Path, server: Server) -> None:
    properties = {"warehouse": "gs://lake/wh", "gcs.oauth2.token": TOKEN}
    run(tmp_path, properties).failed("gcs.oauth2.token-expires-at", "catalog tried", code=2)


@pytest.mark.parametrize("kind", ["moto"])
def test_a_query_of_a_store_that_denies_reading_says_so(tmp_path: Path, server: Server) -> None:
    with faulty(server) as store:
        run(tmp_path, store.properties()).succeeded()
        store.faults += [Fault("403", method, "", FOR_EVER) for method in ("GET", "HEAD")]
        ended = conveyord("query", "SELECT * FROM ns.t", "--catalog", "tried", cwd=tmp_path)
        told = ended.failed("denies access to the bucket 'lake'", "s3.access-key-id")
        assert store.endpoint in told
