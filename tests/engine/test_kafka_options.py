"""What the Kafka source and sink share: how the cluster is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from conveyord.core.errors import ConfigError
from conveyord.engine.kafka.options import FILES, KafkaConfig, connection_of


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_security_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    missing = tmp_path / "missing.pem"
    config = KafkaConfig.model_validate({"brokers": "h:1", "security": {"protocol": "ssl", name: str(missing)}})
    with pytest.raises(ConfigError, match=rf"^security\.{name} {missing}: no such file; mend the path"):
        connection_of(config)
    missing.touch()
    assert str(missing) in connection_of(config).settings.values()
