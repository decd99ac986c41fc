"""What the Kafka source and sink share: how the cluster is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from conveyord.core.errors import ConfigError
from conveyord.engine.kafka.options import FILES, KafkaConfig, connection_of
from conveyord.engine.kafka.source_options import KafkaSourceConfig, source_mistakes


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_security_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    missing = tmp_path / "missing.pem"
    config = KafkaConfig.model_validate({"brokers": "h:1", "security": {"protocol": "ssl", name: str(missing)}})
    with pytest.raises(ConfigError, match=rf"^security\.{name} {missing}: no such file; mend the path"):
        connection_of(config)
    missing.touch()
    assert str(missing) in connection_of(config).settings.values()


@pytest.mark.parametrize(
    ("start_offsets", "says"),
    [
        ({"gap": 5}, "'gap' is no partition; write TOPIC[NUMBER]"),
        ({"rett[0]": 5}, "topic 'rett' is not read here"),
        ({"ret[0]": -1}, "-1 is no offset"),
    ],
)
def test_a_start_that_would_be_passed_over_is_a_mistake(start_offsets: dict[str, int], says: str) -> None:
    config = KafkaSourceConfig.model_validate({"brokers": "h:1", "topics": "ret", "start_offsets": start_offsets})
    assert says in source_mistakes(config)["start_offsets", next(iter(start_offsets))]
