"""Kafka for tests: `cluster` (the mock and a real one, in turn), `kafka` (a real one), `broker` (ours, to be hurt),
`logs` (the ports of core/flow/record_log.py, over a fake in memory, the mock and a real one, in turn).

A real one is what CONVEYORD_TEST_KAFKA=host:port names, or else our own broker, started once per pytest process when
first asked for. A broker that a test has stopped, killed or paused runs again before the next test has it.

A test that needs what is not there is skipped with the reason, and `make test` names it. Whoever asks for the mark
`kafka` (`make check` does) wants it to run: then it fails instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from tests.engine.graph_rig import fast_clock
from tests.kafka import broker as brokers
from tests.kafka.broker import Broker
from tests.kafka.cluster import Cluster
from tests.kafka.log_rig import FakeLogs, KafkaLogs, Logs
from tests.kafka.mock import MockBroker

ADDRESS = "CONVEYORD_TEST_KAFKA"
REAL = {"kafka", "broker"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what takes `cluster` against both kinds, or the real one if the mock is said to be wrong at it; likewise what
    takes `logs`, against a fake as well.
    """
    for name in {"cluster", "logs"}.intersection(metafunc.fixturenames):
        kinds = [pytest.param("real", marks=pytest.mark.kafka)]
        if metafunc.definition.get_closest_marker("beyond_mock") is None:
            kinds.insert(0, pytest.param("mock"))
        if name == "logs":
            kinds.insert(0, pytest.param("fake"))
        metafunc.parametrize(name, kinds, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes a real Kafka, before marks are chosen by."""
    for item in items:
        if REAL.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """A Kafka, a mock or a real one: see `beyond_mock` for the tests that must not meet a mock."""
    return request.getfixturevalue("mock" if request.param == "mock" else "kafka")


@pytest.fixture
def logs(request: pytest.FixtureRequest) -> Iterator[Logs]:
    """The ports, over one of the three. What a test opens by it is closed at its end."""
    kind = request.param
    found = FakeLogs() if kind == "fake" else KafkaLogs(request.getfixturevalue("mock" if kind == "mock" else "kafka"))
    with found:
        yield found


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> Cluster:
    """A real Kafka that is not to be hurt: other tests, or people, use it as well."""
    if address := os.environ.get(ADDRESS):
        return Cluster(address)
    return request.getfixturevalue("broker")


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Broker:
    """Our own broker; a test may stop, kill and pause it and leave it so."""
    found: Broker = request.getfixturevalue("_broker")
    found.restore()
    return found


@pytest.fixture(scope="session")
def mock() -> Iterator[MockBroker]:
    """The mock cluster, shared: topics need names of their own."""
    found = MockBroker()
    yield found
    found.close()


@pytest.fixture(scope="session")
def _broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if reason := brokers.missing():
        wanted = "kafka" in request.config.getoption("markexpr")
        (pytest.fail if wanted else pytest.skip)(f"no real Kafka: {reason}")
    found = Broker(tmp_path_factory.mktemp("kafka"))
    try:
        yield found
    finally:
        found.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what the broker said beside the failure of a test that had it."""
    report = yield
    found = getattr(item, "funcargs", {}).values()
    for broker in (value for value in found if isinstance(value, Broker)):
        if report.failed:
            report.sections.append((f"the end of {broker.log_path}", broker.log_tail()))
            break
    return report


@pytest.fixture
def hasty_clock() -> MockClock:
    """For what waits and works in threads by turns."""
    return fast_clock()


@pytest.fixture
def still_clock() -> MockClock:
    """A clock that stands still: what waits for time to pass never ends."""
    return MockClock()
