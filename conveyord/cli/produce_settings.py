"""What `--set KEY=VALUE` of `produce` comes to: settings of the client, and of how the kafka sink sends records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from conveyord.core.errors import ConfigError
from conveyord.engine.definitions.sentences import sentence_of
from conveyord.engine.kafka.sink_options import SET_BY_OPTIONS, KafkaSinkConfig, sink_mistakes
from conveyord.engine.secrets import resolved

DELIVERY_TIMEOUT = "20s"  # for a person who waits: a pipeline has more patience
ADDRESSES = frozenset({"bootstrap.servers", "metadata.broker.list"})


def given_settings(given: tuple[str, ...]) -> tuple[dict[str, str], KafkaSinkConfig]:
    """Settings of librdkafka, what is `env:NAME` or `file:PATH` read, and the sink's options that stand for others.

    Of the options only those count that say how records are sent. Blocking. Raises ConfigError for a setting that is
    none, or one that conveyord sets itself. Errors never show a value that may be a secret.
    """
    client: dict[str, str] = {}
    options: dict[str, str] = {"delivery_timeout": DELIVERY_TIMEOUT}
    names: dict[str, str] = {}
    for number, text in enumerate(given, 1):
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set number {number} is not KEY=VALUE, such as security.protocol=ssl")
        if name in ADDRESSES:
            raise ConfigError(f"--set {name}: use --brokers")
        option = SET_BY_OPTIONS.get(name)
        if option is None:
            client[name] = value
        else:
            names[option] = name
            options[option] = f"{value}ms" if name.endswith(".ms") else value
    config = _config(client, options, names)
    for key, mistake in sink_mistakes(config).items():
        raise ConfigError(f"--set {key[-1] if isinstance(key, tuple) else key}: {mistake}")
    return resolved(client, "--set"), config


def _config(client: Mapping[str, str], options: Mapping[str, str], names: Mapping[str, str]) -> KafkaSinkConfig:
    unused: dict[str, Any] = {"brokers": "unused", "topic": "unused"}
    try:
        return KafkaSinkConfig.model_validate({**unused, "client": client, **options})
    except ValidationError as error:
        detail = error.errors()[0]
        option = str(detail["loc"][0])
        value = options[option]
        raise ConfigError(
            sentence_of(detail, shown=repr(value), value=value, name=f"--set {names[option]}", model=None)
        ) from error
