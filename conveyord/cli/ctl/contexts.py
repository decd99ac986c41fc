"""Contexts: clusters by name, with their servers and how to be let in, in one TOML file of the user."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from conveyord.core.errors import ConfigError

HEAD = "# Written by conveyorctl, which does not keep comments. `conveyorctl context --help` tells more.\n"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FILE_BYTES_MAX = 1024 * 1024
SECRET_BYTES_MAX = 64 * 1024  # of a file with a token; more is the wrong file
KEYS = ("servers", "token", "ca")


@dataclass(frozen=True, slots=True)
class Context:
    """token: itself, `env:NAME` or `file:PATH`; empty for none. ca: a PEM file; empty for the system's authorities."""

    servers: tuple[str, ...]
    token: str = ""
    ca: str = ""

    @property
    def holds_secret(self) -> bool:
        """Whether the token itself stands in the file."""
        return bool(self.token) and not is_reference(self.token)


@dataclass(frozen=True, slots=True)
class Contexts:
    """What the file says. current: the name of the one that is used where none is named; empty for none."""

    current: str = ""
    named: Mapping[str, Context] = field(default_factory=dict)

    def get(self, name: str, path: Path) -> Context:
        """The one of that name. Raises ConfigError."""
        if name in self.named:
            return self.named[name]
        close = get_close_matches(name, self.named, n=1)
        if close:
            hint = f"did you mean {close[0]!r}?"
        elif self.named:
            hint = f"there are {', '.join(sorted(self.named))}"
        else:
            hint = f"add it with `conveyorctl context add {name if NAME.fullmatch(name) else 'NAME'} --server URL`"
        raise ConfigError(f"there is no context {name!r} in {path}; {hint}")


def default_path() -> Path:
    """Where the file is: `conveyord/contexts.toml` in the user's configuration (XDG)."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".config"  # others are to be ignored, says XDG
    return base / "conveyord" / "contexts.toml"


def read(path: Path) -> Contexts:
    """What the file says; nothing if there is none. Raises ConfigError, with the line where there is one.

    A file with a token that others may read is refused, as ssh does with a key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise ConfigError(f"the contexts file {path} cannot be read: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes, so it is no file of contexts")
    contexts = _parse(path, content)
    if mode & 0o077 and any(context.holds_secret for context in contexts.named.values()):
        raise ConfigError(f"{path} holds a token and others may read it (mode {mode:04o}); run chmod 600 {path}")
    return contexts


@contextmanager
def changing(path: Path) -> Iterator[list[Contexts]]:
    """Read the file, and write what is in the list afterwards, if that is something else. One process at a time.

    The file is replaced as a whole, with mode 0600. Raises ConfigError.
    """
    target = path.resolve()  # a link stays a link: dotfiles are often linked
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"the folder of {path} cannot be made: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = read(target)
        held = [before]
        yield held
        if held[0] != before:
            _replace(target, _text(held[0]))
    finally:
        os.close(folder)


def is_reference(text: str) -> bool:
    """Whether a token stands somewhere else: `env:NAME` or `file:PATH`."""
    return text.startswith(("env:", "file:"))


def secret(text: str, what: str) -> str:
    """A token, read from where it refers to if it does. Raises ConfigError naming `what`, never the secret."""
    kind, _, name = text.partition(":")
    if kind == "env":
        if not os.environ.get(name):
            raise ConfigError(f"{what} refers to the environment variable {name!r}, which is not set; set it")
        return os.environ[name].strip()
    if kind == "file":
        return secret_file(Path(name).expanduser(), what)
    return text


def secret_file(path: Path, what: str) -> str:
    """The token in a file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"{what} refers to the file {str(path)!r}, which cannot be read: {error.strerror}; put it there, or name "
            "another one"
        ) from error
    if len(content) > SECRET_BYTES_MAX:
        raise ConfigError(f"{what} refers to the file {str(path)!r}, which is larger than {SECRET_BYTES_MAX} bytes")
    try:
        return content.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} refers to the file {str(path)!r}, which holds no token") from error


def masked(token: str) -> str:
    """A token as it may be shown: which one, not what is secret of it."""
    if not token or is_reference(token):
        return token
    kind, _, rest = token.partition("_")  # cvd_ID_SECRET
    return f"cvd_{rest.partition('_')[0]}_***" if kind == "cvd" and "_" in rest else "***"


def check_name(name: str) -> str:
    """`name`, if a context may be called so. Raises ConfigError."""
    if NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"{name!r} is no name of a context; write up to 64 letters, digits, '.', '_', '-', a letter or digit first"
    )


def _parse(path: Path, content: bytes) -> Contexts:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; write the file again") from error
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        found = re.match(r"line (\d+)", place)
        line = int(found[1]) if found else len(text.splitlines())
        raise ConfigError(f"{path}:{line}: not TOML: {reason or error}") from error
    unknown = [key for key in told if key not in ("current", "contexts")]
    if unknown:
        raise _wrong(path, text, "", unknown[0], f"unknown key {unknown[0]!r}; the keys are current and contexts")
    current, contexts = told.get("current", ""), told.get("contexts", {})
    if not isinstance(current, str) or not isinstance(contexts, dict):
        key = "contexts" if isinstance(current, str) else "current"
        raise _wrong(path, text, "", key, 'write current = "NAME", and a table [contexts.NAME] for each')
    named = {name: _context(path, text, name, table) for name, table in contexts.items()}
    return Contexts(current, named)


def _context(path: Path, text: str, name: str, table: Any) -> Context:
    if not isinstance(table, dict):
        raise _wrong(path, text, "contexts", name, f"{name!r} must be a table; write [contexts.{name}]")
    for key, value in table.items():
        if key not in KEYS:
            close = get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys of a context are {', '.join(KEYS)}"
            raise _wrong(path, text, f"contexts.{name}", key, f"unknown key {key!r}; {hint}")
        is_list = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
        if not (is_list if key == "servers" else isinstance(value, str)):
            what = "a list of URLs" if key == "servers" else "text"
            raise _wrong(path, text, f"contexts.{name}", key, f"{key!r} must be {what}")  # the value may be a secret
    if "servers" not in table:
        raise _wrong(path, text, f"contexts.{name}", "", f"context {name!r} has no servers; give servers = [URL, ...]")
    return Context(tuple(table["servers"]), table.get("token", ""), table.get("ca", ""))


def _wrong(path: Path, text: str, table: str, key: str, problem: str) -> ConfigError:
    """A sentence with the line of `key` in `table`, or of the table. tomllib does not tell lines."""
    at, within = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            within = re.sub(r"[\"'\s]", "", header[1])
            at = number if within in (table, f"{table}.{key}") else at
        elif within == table and (found := re.match(r"\s*[\"']?([\w.-]+)[\"']?\s*=", line)) and found[1] == key:
            at = number
            break
    return ConfigError(f"{path}:{at}: {problem}" if at else f"{path}: {problem}")


def _text(contexts: Contexts) -> str:
    lines = [HEAD]
    if contexts.current:
        lines.append(f"current = {_quoted(contexts.current)}\n")
    for name, context in sorted(contexts.named.items()):
        lines.append(f"\n[contexts.{_quoted(name)}]\nservers = [{', '.join(map(_quoted, context.servers))}]\n")
        for key, value in (("token", context.token), ("ca", context.ca)):
            if value:
                lines.append(f"{key} = {_quoted(value)}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    """A string of TOML. JSON's escapes are valid there; DEL, which JSON leaves as it is, is not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process that was killed; whoever writes has the lock
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
