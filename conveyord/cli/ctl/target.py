"""Whom a verb asks, and with which token: from its options, the environment, the contexts, or what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from conveyord.api.client_http import Server, parse_server
from conveyord.cli.ctl.contexts import Context, default_path, read, secret, secret_file
from conveyord.core.errors import ConfigError, Retryable

DEFAULT_SERVER = "http://127.0.0.1:7480"
DEFAULT_DATA_DIR = Path("conveyord-data")
LOCAL_TOKEN = "local-token"  # the file that a node writes into its data directory when it starts


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says; None or empty where it says nothing."""

    servers: tuple[str, ...] = ()
    token: str | None = None
    ca: Path | None = None
    context: str | None = None
    contexts_file: Path | None = None
    data_dir: Path | None = None


class Target(NamedTuple):
    """ca: None for the system's authorities. is_local: whether the token is, or will be, that of a data directory here,
    which a node writes anew when it starts.
    """

    servers: tuple[Server, ...]
    token: str
    ca: Path | None
    is_local: bool = False


def target(flags: Flags, environment: Mapping[str, str]) -> Target:
    """Settle whom to ask.

    Raises ConfigError, and Retryable for a data directory where no node was started yet. Blocking.

    Options win over the environment, that over the current context, that over a node on this machine. A token belongs
    to the servers of its context: it is not sent to those of --server, unless --context names it beside.
    """
    for option, given in (("--context", flags.context), ("--token", flags.token)):
        if given == "":  # such as a variable that is not set: another cluster, or another right, would be meant
            raise ConfigError(f"{option} is empty; name one, or leave it out")
    context, name = _context(flags, environment)
    servers = flags.servers or (context.servers if flags.context and context else ())
    if not servers and (given := environment.get("CONVEYORD_SERVER")):
        servers = tuple(given.split(","))
    servers = servers or (context.servers if context else (DEFAULT_SERVER,))
    parsed = tuple(parse_server(server.strip()) for server in servers)
    ca = flags.ca or (Path(context.ca).expanduser() if context and context.ca else None)
    if flags.token is None and flags.data_dir is not None:
        return Target(parsed, _local_token(flags.data_dir, parsed), ca, is_local=True)
    token = _token(flags, environment, context, name)
    if token is None:
        is_local = all(server.is_loopback for server in parsed)
        return Target(parsed, _usual_token() if is_local else "", ca, is_local)
    return Target(parsed, token, ca)


def _context(flags: Flags, environment: Mapping[str, str]) -> tuple[Context | None, str]:
    path = flags.contexts_file or Path(environment.get("CONVEYORD_CONTEXTS") or default_path())
    from_environment = environment.get("CONVEYORD_CONTEXT")
    if flags.context:
        return read(path).get(flags.context, path), flags.context
    if flags.servers:
        return None, ""
    if environment.get("CONVEYORD_SERVER"):
        if from_environment:
            raise ConfigError("CONVEYORD_SERVER and CONVEYORD_CONTEXT are both set and name servers; unset one of them")
        return None, ""
    if from_environment:
        return read(path).get(from_environment, path), from_environment
    contexts = read(path)
    return (contexts.get(contexts.current, path), contexts.current) if contexts.current else (None, "")


def _token(flags: Flags, environment: Mapping[str, str], context: Context | None, name: str) -> str | None:
    """The one that was given, or that a context is without; None if nothing says which."""
    if flags.token is not None:
        return secret(flags.token, "--token")
    of_context = secret(context.token, f"the token of context {name!r}") if context and context.token else ""
    if flags.context and of_context:
        return of_context
    if given := environment.get("CONVEYORD_TOKEN"):
        return secret(given, "CONVEYORD_TOKEN")
    return of_context if context else None


def _usual_token() -> str:
    """Of a node that was started here with the usual data directory; empty if there is none."""
    path = DEFAULT_DATA_DIR / LOCAL_TOKEN
    return secret_file(path, "the node on this machine") if _is_readable(path) else ""


def _local_token(data_dir: Path, servers: tuple[Server, ...]) -> str:
    """The token by which a node lets in who can read its data directory. Raises Retryable while it is not there."""
    for server in servers:
        if not server.is_loopback:
            raise ConfigError(
                f"the token in {data_dir} is for the node there alone, not for {server}; give --token, or ask the node "
                f"at its address on this machine, such as {DEFAULT_SERVER}"
            )
    path = data_dir / LOCAL_TOKEN
    if not data_dir.is_dir():
        raise Retryable(f"there is no data directory {data_dir}; give that of a node that runs on this machine")
    try:
        if not path.exists():
            raise Retryable(f"{data_dir} has no {LOCAL_TOKEN}: a node writes it when it starts; start the node")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; call as the user who runs the node") from error
    return secret_file(path, "--data-dir")


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False
