"""What values mean: addresses, files, and secrets that stand elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from conveyord.core.errors import ConfigError

SECRET_BYTES_MAX = 64 * 1024  # a token or a key; more is the wrong file


class Model(BaseModel):
    """Part of the settings: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Address(NamedTuple):
    """Where to listen, or to connect to. To listen at port 0 is to take a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can be there."""
        return self.host == "localhost" or any(one.is_loopback for one in _numeric(self.host))

    @property
    def is_everywhere(self) -> bool:
        """Whether it stands for all addresses of this machine, such as 0.0.0.0."""
        return any(one.is_unspecified for one in _numeric(self.host))


def parse_address(text: str) -> Address:
    """The address that `HOST:PORT` means. Raises ValueError."""
    try:
        parts = urlsplit(f"//{text}")
        host, port, is_more = parts.hostname, parts.port, parts.netloc != text or "@" in text
    except ValueError:
        host, port, is_more = None, None, True
    if host is None or port is None or is_more:
        raise ValueError(f"{text!r} is no address; write HOST:PORT with a port up to 65535, such as 127.0.0.1:9464")
    return Address(host, port)


def _check_address(text: str) -> str:
    parse_address(text)
    return text


def _check_address_or_empty(text: str) -> str:
    return text and _check_address(text)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # TOML has lists, a frozen model tuples


AddressText = Annotated[str, AfterValidator(_check_address)]
AddressOrEmpty = Annotated[str, AfterValidator(_check_address_or_empty)]
FromList = BeforeValidator(_as_tuple)


def resolved(value: str, key: str) -> str:
    """`value`, or what `env:NAME` or `file:PATH` in it refers to. Blocking. Raises ConfigError naming `key`."""
    kind, _, name = value.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"{key} refers to the environment variable {name!r}, which is not set; set it")
        return os.environ[name]
    if kind == "file" and not name.startswith("//"):  # file:// is a URI, such as a warehouse's
        try:
            with Path(name).open("rb") as file:
                content = file.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(
                f"{key} refers to the file {name!r}, which cannot be read: {error.strerror}; put it there, or "
                "name another one"
            ) from error
        if len(content) > SECRET_BYTES_MAX:
            raise ConfigError(f"{key} refers to the file {name!r}, which is larger than {SECRET_BYTES_MAX} bytes")
        try:
            return content.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise ConfigError(f"{key} refers to the file {name!r}, which is not UTF-8; look at what is in it") from None
    return value


def _numeric(host: str) -> Iterable[Any]:
    try:
        return (ip_address(host),)
    except ValueError:
        return ()
