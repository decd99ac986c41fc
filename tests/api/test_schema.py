"""The OpenAPI document is valid, and whatever it allows or forbids is what the server does (schemathesis)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from conveyord.api.openapi import openapi
from conveyord.api.operations import OPERATIONS
from tests.api.background import Background
from tests.api.rig import Served

CONFIG = Path(__file__).with_name("schemathesis.toml")


def test_the_document_is_valid() -> None:
    validate(openapi(OPERATIONS), cls=OpenAPIV31SpecValidator)


def run(node: Served, home: Path, *options: str) -> None:
    """Run schemathesis with all its checks."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", "--checks", "all"]
    token = node.local["authorization"].removeprefix("Bearer ")
    done = subprocess.run(
        [*command, *options, "--seed", "1", f"{node.url}/api/v1/openapi.json"],
        cwd=home,
        env=os.environ | {"CONVEYORD_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def test_a_few_requests(tmp_path: Path) -> None:
    with Background(tmp_path / "node", "tokens") as node:
        run(node, tmp_path, "--phases", "coverage")


@pytest.mark.check
@pytest.mark.parametrize("access", ["open", "tokens"])
def test_many_requests(tmp_path: Path, access: str) -> None:
    with Background(tmp_path / "node", access) as node:
        run(node, tmp_path, "--max-examples", "15", "--no-shrink")
