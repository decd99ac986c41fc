"""Settings of a node or a local run, from conveyord.toml.

Every key is in the sample conveyord.toml at the top of the repository, with its unit and default.
Unknown keys and wrong types are refused with their line. Nothing is read from environment variables
but what a value asks for with `env:NAME`.
"""

from __future__ import annotations

import os
import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from conveyord.core.errors import ConfigError
from conveyord.core.units import Bytes, parse_seconds

DEFAULT_FILE = Path("conveyord.toml")
EMBEDDED_CATALOG = "lake"
CHANNEL_CAPACITY_MAX = 1024  # batches; beyond this a channel holds gigabytes and hides a slow sink
THREADS_MAX = 256
SPILL_BUDGET_BYTES = 10 * 1024**3  # hours of a stalled branch, and little of a server's disk
DEAD_LETTERS_BUDGET_BYTES = 1024**3  # a million letters of a kilobyte: more than anyone repairs by hand
DEAD_LETTERS_BUDGET_BYTES_MIN = 1024**2  # less would not hold one large record and the index
DEAD_LETTERS_RETENTION_SECONDS = 30 * 86400.0
SECRET_BYTES_MAX = 64 * 1024  # a token or a key; more is the wrong file


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Address(NamedTuple):
    """Where to listen. Port 0 is a free one."""

    host: str
    port: int


def _metrics_address(text: str) -> Address | None:
    """The address that `run.metrics` means; None if it is empty. Raises ValueError."""
    if not text:
        return None
    try:
        parts = urlsplit(f"//{text}")
        host, port, is_more = parts.hostname, parts.port, parts.netloc != text or "@" in text
    except ValueError:
        host, port, is_more = None, None, True
    if host is None or port is None or is_more:
        raise ValueError(f"{text!r} is no address; write HOST:PORT with a port up to 65535, such as 127.0.0.1:9464")
    return Address(host, port)


def _check_metrics(text: str) -> str:
    _metrics_address(text)
    return text


class RunConfig(_Model):
    """How pipelines are run. `channel_capacity` is in batches per edge; `threads` 0 means one per core.

    metrics: HOST:PORT where Prometheus may scrape a run; empty for nowhere.
    """

    channel_capacity: int = Field(default=8, ge=1, le=CHANNEL_CAPACITY_MAX)
    threads: int = Field(default=0, ge=0, le=THREADS_MAX)
    metrics: Annotated[str, AfterValidator(_check_metrics)] = ""

    def metrics_address(self, port: int | None = None) -> Address | None:
        """Where to serve metrics. port: wins over the one in `metrics`; without `metrics`, on loopback alone."""
        configured = _metrics_address(self.metrics)
        if port is None:
            return configured
        return Address("127.0.0.1" if configured is None else configured.host, port)


class LogConfig(_Model):
    """What is logged to stderr, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class SpillConfig(_Model):
    """Disk for branches with `on_slow: spill`. `budget` is in bytes, for all of a process together."""

    budget: Bytes = Field(default=SPILL_BUDGET_BYTES, gt=0)


def _parse_retention(value: object) -> float | None:
    if value is None or value == "forever":
        return None
    return parse_seconds(value)


class DeadLettersConfig(_Model):
    """Records that failed for ever. `budget` is in bytes; `retention` in seconds, None for ever."""

    budget: Bytes = Field(default=DEAD_LETTERS_BUDGET_BYTES, ge=DEAD_LETTERS_BUDGET_BYTES_MIN)
    retention: Annotated[float | None, BeforeValidator(_parse_retention)] = Field(
        default=DEAD_LETTERS_RETENTION_SECONDS, gt=0
    )


def _refuse_embedded(name: str) -> str:
    if name == EMBEDDED_CATALOG:
        raise ValueError(f"{EMBEDDED_CATALOG!r} is the embedded catalog in data_dir; give yours another name")
    return name


CatalogName = Annotated[str, AfterValidator(_refuse_embedded)]


class Config(_Model):
    """All settings. `catalogs` holds pyiceberg properties by catalog name, masked when shown."""

    data_dir: str = "conveyord-data"
    run: RunConfig = Field(default_factory=RunConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    spill: SpillConfig = Field(default_factory=SpillConfig)
    dead_letters: DeadLettersConfig = Field(default_factory=DeadLettersConfig)
    catalogs: dict[CatalogName, dict[str, SecretStr]] = Field(default_factory=dict)

    def resolved_catalogs(self) -> dict[str, dict[str, str]]:
        """The catalogs with `env:NAME` and `file:PATH` replaced by what they refer to. Blocking.

        Raises ConfigError naming the property, never the secret.
        """
        return {
            name: {key: _resolve(value.get_secret_value(), f"catalogs.{name}.{key}") for key, value in given.items()}
            for name, given in self.catalogs.items()
        }

    def thread_count(self) -> int:
        """`run.threads`, with 0 replaced by the number of cores this process may use."""
        return self.run.threads or len(os.sched_getaffinity(0))


def load_config(path: Path | None) -> Config:
    """The settings of `path`, or of ./conveyord.toml if it exists, or the defaults. Blocking.

    A relative `data_dir` is taken from the directory of the file, so that the same file means the same
    from everywhere. Raises ConfigError with file and line.
    """
    if path is None:
        if not DEFAULT_FILE.is_file():
            return Config()
        path = DEFAULT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        where = f"{path}:{place[1]}:{place[2]}" if place else str(path)
        reason = str(error)[: place.start()] if place else str(error)
        raise ConfigError(f"{where}: not TOML: {reason}") from error
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        lines = _key_lines(text)
        problems = [(_line_of(detail["loc"], lines), _sentence(detail)) for detail in error.errors()]
        shown = [f"{path}:{line}: {text}" if line else f"{path}: {text}" for line, text in sorted(problems)]
        raise ConfigError("\n".join(shown)) from error
    return config.model_copy(update={"data_dir": str(path.parent / config.data_dir)})


def _sentence(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1])
        close = get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if detail["type"] == "value_error":
        return f"{key}: {detail['ctx']['error']}"
    message = detail["msg"].removeprefix("Input should be ")
    # A catalog property may be a secret, so a wrong one is not repeated.
    got = "" if detail["loc"][0] == "catalogs" else f", got {detail['input']!r}"
    return f"{key} must be {message}{got}"


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type), path
        assert issubclass(annotation, BaseModel), path
        model = annotation
    return list(model.model_fields)


_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_.\s-])+?)\s*=""")


def _key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of every table header and key. tomllib does not tell; a key within a string may fool this."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE.match(line):
            table = _key_parts(header[1])
            for end in range(1, len(table) + 1):  # [a.b] also makes a
                lines.setdefault(table[:end], number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_key_parts(key[1])), number)
    return lines


def _key_parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.findall(r'"[^"]*"|\'[^\']*\'|[^.]+', key))


def _line_of(path: tuple[int | str, ...], lines: dict[tuple[str, ...], int]) -> int:
    """The line of the longest known part of `path`, or 0."""
    parts = tuple(str(part) for part in path)
    return next((lines[parts[:end]] for end in range(len(parts), 0, -1) if parts[:end] in lines), 0)


def _resolve(value: str, key: str) -> str:
    kind, _, name = value.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"{key} refers to the environment variable {name!r}, which is not set")
        return os.environ[name]
    if kind == "file" and not name.startswith("//"):  # file:// is a URI, such as a warehouse's
        try:
            with Path(name).open("rb") as file:
                content = file.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(f"{key} refers to the file {name!r}, which cannot be read: {error.strerror}") from error
        if len(content) > SECRET_BYTES_MAX:
            raise ConfigError(f"{key} refers to the file {name!r}, which is larger than {SECRET_BYTES_MAX} bytes")
        return content.decode("utf-8").rstrip("\r\n")
    return value
