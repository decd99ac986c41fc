"""What is said of encryption reaches the store with every object of a table."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import boto3
import pytest

from conveyord.storage.lake.catalog import open_catalog
from tests.storage.lake_rig import NAME, Run, assert_exactly_once, files_reachable
from tests.storage.object_stores import BUCKET, KEY_ID, SECRET, Server, running

HEADER = "x-amz-server-side-encryption"
KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"


def headers_of(server: Server, location: str) -> dict[str, str]:
    """As the store has the object, asked of it past our code."""
    keys = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=server.endpoint, **keys)
    with closing(client):
        key = location.removeprefix(f"s3://{BUCKET}/")
        return client.head_object(Bucket=BUCKET, Key=key)["ResponseMetadata"]["HTTPHeaders"]


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        pytest.param({"s3.server-side-encryption": "AES256"}, {HEADER: "AES256"}, id="AES256", marks=pytest.mark.check),
        pytest.param(
            {"s3.server-side-encryption": "aws:kms", "s3.sse-kms-key-id": KMS_KEY},
            {HEADER: "aws:kms", f"{HEADER}-aws-kms-key-id": KMS_KEY},
            id="kms",
        ),
    ],
)
def test_every_object_is_encrypted_as_asked(tmp_path: Path, asked: dict[str, str], stored: dict[str, str]) -> None:
    with running("moto", tmp_path) as server:
        properties = {"type": "sql", "uri": f"sqlite:///{tmp_path / 's.db'}", **server.properties(), **asked}
        run = Run(tmp_path, catalog=open_catalog("store", properties)).open()
        run.commit_next()
        run.commit_next()
        table = open_catalog("store", properties).load_table(NAME)
        assert assert_exactly_once(table) == 2
        objects = files_reachable(table)
        assert any(path.endswith(".parquet") for path in objects)
        for path in objects:
            found = headers_of(server, path)
            assert {key: found.get(key) for key in stored} == stored, path
