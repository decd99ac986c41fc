"""Reads settings from a file and from flags, which win, and says where a mistake stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from conveyord.config.combinations import impossible
from conveyord.config.model import Config
from conveyord.config.values import Model
from conveyord.core.errors import ConfigError

DEFAULT_FILE = Path("conveyord.toml")
SECRET_KEYS = frozenset({("catalogs",), ("backup",), ("cluster", "secret")})

Key = tuple[str, ...]
Flags = Mapping[Key, tuple[str, object]]
"""By the key that a flag stands for: how the flag is written, and its value."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What was given. path: None if there is no file. settings: with those of flags."""

    path: Path | None
    settings: dict[str, Any]
    lines: Mapping[Key, int]
    flags: Mapping[Key, str] = field(default_factory=dict)

    def refusal(self, problems: list[tuple[Key, str]]) -> ConfigError:
        """Of all problems, in the order of the lines; one stands where the longest known part of its key does."""
        placed = sorted(self._placed(key, text) for key, text in problems)
        return ConfigError("\n".join(text for _, text in placed))

    def _placed(self, key: Key, text: str) -> tuple[int, str]:
        parts = [key[:end] for end in range(len(key), 0, -1)]
        if (flag := next((self.flags[part] for part in parts if part in self.flags), None)) is not None:
            return 0, f"{flag}: {text}"
        if self.path is None:
            return 0, text
        line = next((self.lines[part] for part in parts if part in self.lines), 0)
        return line, f"{self.path}:{line}: {text}" if line else f"{self.path}: {text}"


def load_config(path: Path | None) -> Config:
    """The settings of `path`, or of ./conveyord.toml if it exists, or the defaults. Blocking.

    Relative paths in a file are taken from its directory, so that the same file means the same from everywhere.
    Raises ConfigError with file and line.
    """
    return _validated(_read(path))


def load_node_config(path: Path | None, flags: Flags, *, is_dev: bool = False) -> Config:
    """The same for a node: `flags` win over the file, and all of it must be possible together. Blocking.

    is_dev: it is a node for trying things, which may be open to everyone on this machine.

    Raises ConfigError with file and line, or the flag.
    """
    source = _read(path)
    for key, (_, value) in flags.items():
        *above, last = key
        table = source.settings
        for part in above:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                break  # the file is wrong there, and is told so
            table = inner
        else:
            table[last] = value
    source = _Source(source.path, source.settings, source.lines, {key: flag for key, (flag, _) in flags.items()})
    config = _validated(source)
    if problems := [*impossible(config, is_dev=is_dev), *_missing_files(config)]:
        raise source.refusal(problems)
    return config


def _read(path: Path | None) -> _Source:
    if path is None:
        if not DEFAULT_FILE.is_file():
            return _Source(None, {}, {})
        path = DEFAULT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    try:
        return _Source(path, tomllib.loads(text), _key_lines(text))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        where = f"{path}:{place[1]}:{place[2]}" if place else str(path)
        reason = str(error)[: place.start()] if place else str(error)
        raise ConfigError(f"{where}: not TOML: {reason}") from error


def _validated(source: _Source) -> Config:
    try:
        config = Config.model_validate(source.settings)
    except ValidationError as error:
        problems = [(tuple(str(part) for part in detail["loc"]), _sentence(detail)) for detail in error.errors()]
        raise source.refusal(problems) from error
    if source.path is None:
        return config
    home = source.path.parent
    updates: dict[str, Any] = {
        "rpc": config.rpc.model_copy(update={"tls": _from(home, config.rpc.tls)}),
        "http": config.http.model_copy(update={"tls": _from(home, config.http.tls)}),
    }
    if ("data_dir",) not in source.flags:
        updates["data_dir"] = str(home / config.data_dir)
    return config.model_copy(update=updates)


def _from(home: Path, tls: Model) -> Model:
    return tls.model_copy(update={name: str(home / path) for name, path in tls if path})


def _missing_files(config: Config) -> list[tuple[Key, str]]:
    return [
        ((part, "tls", name), f"{part}.tls.{name}: there is no file {path}")
        for part, tls in (("rpc", config.rpc.tls), ("http", config.http.tls))
        for name, path in tls
        if path and not Path(path).is_file()
    ]


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
    # What may be a secret is not repeated.
    got = "" if any(detail["loc"][: len(part)] == part for part in SECRET_KEYS) else f", got {detail['input']!r}"
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


def _key_lines(text: str) -> dict[Key, int]:
    """The line of every table header and key. tomllib does not tell; a key within a string may fool this."""
    lines: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE.match(line):
            table = _key_parts(header[1])
            for end in range(1, len(table) + 1):  # [a.b] also makes a
                lines.setdefault(table[:end], number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_key_parts(key[1])), number)
    return lines


def _key_parts(key: str) -> Key:
    return tuple(part.strip().strip("\"'") for part in re.findall(r'"[^"]*"|\'[^\']*\'|[^.]+', key))
