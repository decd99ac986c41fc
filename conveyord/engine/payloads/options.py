"""How a stage says what its messages hold, and the decoder for that."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, model_validator

from conveyord.core.errors import ConfigError
from conveyord.core.units import Bytes, Seconds
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.http.options import address_mistake
from conveyord.engine.http.trust import trusting
from conveyord.engine.payloads.contract import PayloadDecoder
from conveyord.engine.secrets import Secret
from conveyord.storage.schema_registry import RegistryAccess, SchemaRegistry, basic_authorization

_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")

FormatName = Literal["json", "raw", "arrow_ipc", "avro", "json_schema", "protobuf"]

_OPTIONS: dict[str, frozenset[str]] = {
    "json": frozenset(),
    "raw": frozenset({"text"}),
    "arrow_ipc": frozenset({"max_decoded"}),
    "avro": frozenset({"registry", "schema_file"}),
    "json_schema": frozenset({"registry"}),
    "protobuf": frozenset({"registry"}),
}
"""Which options each format has."""


class RegistryConfig(OperatorConfig):
    """A schema registry with Confluent's interface."""

    url: str = Field(
        min_length=1,
        description="Its address; several with commas, asked in turn where one does not answer.",
        examples=["http://localhost:8081"],
    )
    username: str | None = Field(default=None, description="For basic authentication.")
    password: Secret | None = Field(default=None, description="For basic authentication.")
    token: Secret | None = Field(default=None, description="Sent as `Authorization: Bearer ...` instead.")
    ca_file: str | None = Field(default=None, description="Certificates (PEM) to trust beside the well-known ones.")
    timeout: Seconds = Field(default=10.0, gt=0, le=300, description="For one request, from first to last byte.")
    max_schema: Bytes = Field(
        default=4 * 1024 * 1024, ge=1024, le=256 * 1024**2, description="The largest answer that is read."
    )


class FormatConfig(OperatorConfig):
    """What the values of messages are, with options."""

    type: FormatName = Field(description="The format.")
    text: bool = Field(default=False, description="raw: the values are UTF-8, and the column holds texts.")
    max_decoded: Bytes = Field(
        default=256 * 1024 * 1024,
        ge=1024,
        le=2 * 1024**3,
        description="arrow_ipc: what the rows of one message may take, inflated.",
    )
    schema_file: str | None = Field(
        default=None,
        description="avro: the schema (.avsc) of messages that are Avro alone, without the five bytes that name a "
        "schema in a registry.",
    )
    registry: RegistryConfig | None = Field(
        default=None, description="avro, json_schema, protobuf: where the schemas are."
    )

    @model_validator(mode="after")
    def _has_only_its_own_options(self) -> Self:
        others = self.model_fields_set - {"type"} - _OPTIONS[self.type]
        if others:
            own = ", ".join(sorted(_OPTIONS[self.type]))
            remedy = f"its options are {own}" if own else "it has none"
            raise ValueError(f"the format {self.type} has no option {min(others)!r}; {remedy}")
        return self


def _form(given: Any) -> str:
    """Which of the two forms a format is written in: what is wrong with the other form is no matter then."""
    return "mapping" if isinstance(given, dict | FormatConfig) else "name"


Format = Annotated[
    Annotated[FormatName, Tag("name")] | Annotated[FormatConfig, Tag("mapping")],
    Discriminator(_form),
]
"""A format by its name alone, or a mapping with `type` and its options."""

FORMAT_DESCRIPTION = (
    "What the messages hold: `json` (an object each), `raw` (a column `value`), `arrow_ipc` (an IPC stream each), "
    "`avro`, `json_schema` or `protobuf` (as a schema registry frames them). With options, a mapping with `type` and: "
    "`text: true` of raw, for texts in place of bytes; `max_decoded` of arrow_ipc (default 256MiB); `schema_file` of "
    "avro, for messages without a registry; `registry` of the last three, with `url`, `username` and `password` or "
    "`token`, `ca_file`, `timeout` (default 10s) and `max_schema` (default 4MiB)."
)
"""For the option that holds a `Format`."""


def format_config(given: FormatName | FormatConfig) -> FormatConfig:
    """The long form of a format."""
    return given if isinstance(given, FormatConfig) else FormatConfig(type=given)


def format_mistakes(given: FormatName | FormatConfig) -> dict[tuple[str, ...], str]:
    """What is wrong with a format beyond its types, by the way to it below the format. See `Operator.mistakes`."""
    config = format_config(given)
    found: dict[tuple[str, ...], str] = {}
    needs_registry = "registry" in _OPTIONS[config.type]
    if needs_registry and config.registry is None and config.schema_file is None:
        other = " or {type: avro, schema_file: ...}" if config.type == "avro" else ""
        found[()] = (
            f"the format {config.type} has to know where schemas are; write {{type: {config.type}, "
            f"registry: {{url: ...}}}}{other}"
        )
    if config.registry is not None and config.schema_file is not None:
        found["schema_file",] = "messages are framed for a registry or they are not; give registry or schema_file"
    if config.registry is not None:
        found |= {("registry", *key): mistake for key, mistake in _registry_mistakes(config.registry).items()}
    return found


def _registry_mistakes(config: RegistryConfig) -> dict[tuple[str, ...], str]:
    found: dict[tuple[str, ...], str] = {}
    for url in registry_urls(config):
        mistake = address_mistake(url)
        if "@" in urlsplit(url).netloc:
            mistake = "holds a user or a password, which would be shown; write registry.username and registry.password"
        if mistake is None and urlsplit(url).query:
            mistake = "has a query (?...), which no registry takes; leave it out"
        if mistake is not None:
            found["url",] = mistake
    if config.token is not None and (config.username is not None or config.password is not None):
        found["token",] = "a registry is asked with a token or with username and password; give one of them"
    elif (config.username is None) != (config.password is None):
        missing = "password" if config.password is None else "username"
        found["username" if missing == "password" else "password",] = f"needs {missing} beside it"
    return found


def registry_urls(config: RegistryConfig) -> tuple[str, ...]:
    """The addresses in `url`, without a slash at their ends."""
    return tuple(url.strip().rstrip("/") for url in config.url.split(","))


def payload_decoder(given: FormatName | FormatConfig) -> PayloadDecoder:
    """The decoder for a format. Blocking: reads secrets and files, connects to nothing yet.

    Raises ConfigError if one of those cannot be had, the configuration has a mistake, or a package is missing.
    """
    config = format_config(given)
    for key, mistake in format_mistakes(config).items():
        raise ConfigError(f"{'.'.join(('format', *key))}: {mistake}")
    match config.type:
        case "json":
            from conveyord.engine.payloads.json import JsonPayloads

            return JsonPayloads()
        case "raw":
            from conveyord.engine.payloads.raw import RawPayloads

            return RawPayloads(is_text=config.text)
        case "arrow_ipc":
            from conveyord.engine.payloads.arrow_ipc import ArrowIpcPayloads

            return ArrowIpcPayloads(decoded_bytes_max=config.max_decoded)
        case _:
            return _of_schemas(config)


def _of_schemas(config: FormatConfig) -> PayloadDecoder:
    """The decoders of values that cannot be read without a schema."""
    if config.type == "avro":
        from conveyord.engine.payloads.avro.decoder import AvroPayloads, FramedAvroPayloads, schema_of_file

        if config.schema_file is not None:
            return AvroPayloads(schema_of_file(config.schema_file))
        return FramedAvroPayloads(_registry(config.registry))
    if config.type == "json_schema":
        from conveyord.engine.payloads.json_schema import JsonSchemaPayloads

        return JsonSchemaPayloads(_registry(config.registry))
    from conveyord.engine.payloads.protobuf.decoder import ProtobufPayloads

    return ProtobufPayloads(_registry(config.registry))


def _registry(config: RegistryConfig | None) -> SchemaRegistry:
    assert config is not None, "format_mistakes lets none through without a registry"
    authorization = None
    if config.token is not None:
        authorization = f"Bearer {_revealed(config.token, 'token')}"
    elif config.username is not None and config.password is not None:
        authorization = basic_authorization(config.username, _revealed(config.password, "password"))
    if authorization is not None and _HEADER_VALUE.fullmatch(authorization) is None:
        # What the protocol library says of such a value quotes it.
        raise ConfigError("format.registry.token: it holds a character that no header may have, such as a line end")
    access = RegistryAccess(
        urls=registry_urls(config),
        trust=trusting(config.ca_file, option="format.registry.ca_file"),
        authorization=authorization,
        timeout_seconds=config.timeout,
        answer_bytes_max=config.max_schema,
    )
    return SchemaRegistry(access)


def _revealed(secret: Secret, key: str) -> str:
    try:
        return secret.reveal()
    except ConfigError as error:
        raise ConfigError(f"format.registry.{key}: {error}") from error
