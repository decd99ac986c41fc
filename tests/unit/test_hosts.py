"""`conveyord.core.hosts`: who can reach what."""

from __future__ import annotations

import pytest

from conveyord.core.hosts import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.200.3.4", "::1", "::ffff:127.0.0.1"])
def test_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "127.0.0.1.example.org", "localhost.", "127.1", "[::1]"],
)
def test_others_perhaps(host: str) -> None:
    assert not is_loopback(host)
