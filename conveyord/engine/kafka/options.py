"""The options that the `kafka` source and the `kafka` sink share, and the connection made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from conveyord.core.errors import ConfigError
from conveyord.core.units import Seconds
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.secrets import HIDDEN, Secret, resolved
from conveyord.storage.kafka.connection import Connection, Silence

OURS = frozenset(
    {
        "auto.offset.reset",
        "bootstrap.servers",
        "client.id",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "enable.partition.eof",
        "group.id",
        "group.instance.id",
        "isolation.level",
        "metadata.broker.list",
        "partition.assignment.strategy",
        "transactional.id",
    }
)
"""Settings of librdkafka that conveyord sets itself, because what it promises depends on them."""

FILES = ("ca_file", "certificate_file", "key_file")
"""Options of `security` that are paths."""


class SecurityConfig(OperatorConfig):
    """How to get in. What is not here goes into `client`, such as the settings of Kerberos and OAuth."""

    protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        default="plaintext", description="`ssl` is TLS, `sasl_...` asks for a user."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"] | None = Field(
        default=None, description="Of SASL; needed with it."
    )
    username: str | None = Field(default=None, description="For PLAIN and SCRAM.")
    password: Secret | None = Field(
        default=None, description="For PLAIN and SCRAM: `env:NAME`, `file:PATH`, or itself."
    )
    ca_file: str | None = Field(default=None, description="Certificates (PEM) to trust; none: those of the system.")
    certificate_file: str | None = Field(default=None, description="A certificate (PEM) to be known by.")
    key_file: str | None = Field(default=None, description="Its key (PEM).")
    key_password: Secret | None = Field(default=None, description="What the key is encrypted with.")
    verify_host: bool = Field(default=True, description="The broker's certificate must name the broker's host.")


class KafkaConfig(OperatorConfig):
    """What the source and the sink both take."""

    brokers: str = Field(
        validation_alias=AliasChoices("brokers", "bootstrap_servers"),
        min_length=1,
        description="`host:port`, several with commas. The others of the cluster are found.",
        examples=["localhost:9092"],
    )
    security: SecurityConfig = Field(default_factory=SecurityConfig)
    client: Annotated[dict[str, str | int | float | bool], HIDDEN] = Field(
        default={},
        description="Settings of librdkafka, passed on as they are. Those that promises rest on are refused.",
        examples=[{"fetch.max.bytes": 10485760}],
    )
    connect_timeout: Seconds = Field(
        default=5.0, gt=0, le=300, description="Until a broker must have answered; then it is an error."
    )


def kafka_mistakes(config: KafkaConfig) -> dict[Any, str]:
    """What is wrong with the shared options, by key. See `Operator.mistakes`."""
    found: dict[Any, str] = {}
    for name in config.client:
        if name in OURS:
            found["client", name] = f"{name} is set by conveyord itself; leave it out"
    security = config.security
    has_sasl = security.protocol.startswith("sasl")
    if has_sasl and security.mechanism is None:
        found["security", "protocol"] = f"{security.protocol} needs security.mechanism, such as SCRAM-SHA-512"
    for name in ("mechanism", "username", "password"):
        if getattr(security, name) is not None and not has_sasl:
            found["security", name] = f"has no meaning with protocol {security.protocol}; set sasl_ssl"
    for name in (*FILES, "key_password"):
        if getattr(security, name) is not None and not security.protocol.endswith("ssl"):
            found["security", name] = f"has no meaning with protocol {security.protocol}; set ssl or sasl_ssl"
    return found


def connection_of(config: KafkaConfig, silence: Silence | None = None) -> Connection:
    """How to reach the cluster of `config`. Blocking. Raises ConfigError if a secret cannot be had.

    silence: of whoever tried before and tries again.
    """
    return Connection(config.brokers, _settings(config), config.connect_timeout, silence or Silence())


def _settings(config: KafkaConfig) -> Mapping[str, str]:
    security = config.security
    for name in FILES:
        path = getattr(security, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(
                f"security.{name} {path}: no such file; mend the path, which may be relative to {Path.cwd()}"
            )
    secrets = {}
    for name in ("password", "key_password"):
        secret = getattr(security, name)
        try:
            secrets[name] = None if secret is None else secret.reveal()
        except ConfigError as error:
            raise ConfigError(f"security.{name}: {error}") from error
    texts = {name: _text(value) for name, value in config.client.items()}
    given = {
        "security.protocol": security.protocol,
        "sasl.mechanism": security.mechanism,
        "sasl.username": security.username,
        "sasl.password": secrets["password"],
        "ssl.ca.location": security.ca_file,
        "ssl.certificate.location": security.certificate_file,
        "ssl.key.location": security.key_file,
        "ssl.key.password": secrets["key_password"],
    }
    if security.protocol.endswith("ssl") and not security.verify_host:
        given["ssl.endpoint.identification.algorithm"] = "none"
    return {**resolved(texts, "client"), **{key: value for key, value in given.items() if value is not None}}


def _text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
