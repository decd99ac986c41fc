"""`conveyord fmt`: definition files in their one canonical form."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click

from conveyord.cli.exits import EXIT_FAILED, reports_failures
from conveyord.cli.options import GivenPath


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=GivenPath())
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file is not in the canonical form.")
@click.option("--diff", is_flag=True, help="Write nothing; print what would change. Secrets are hidden.")
@reports_failures
def fmt(paths: tuple[Path, ...], check: bool, diff: bool) -> int:
    """Rewrite definition files in the canonical form. Comments stay, and so does the meaning.

    Keys get their canonical spelling and place; a bare pipeline becomes a Pipeline resource. Files
    below a directory are found by .yaml and .yml. Nothing is written unless every file can be.
    """
    from conveyord.engine.definitions.files import read_files
    from conveyord.engine.formatting import format_definition
    from conveyord.engine.problems import DefinitionError, Problem
    from conveyord.engine.registry import installed

    problems: list[Problem] = []
    changes: list[tuple[Path, str, str]] = []
    for path, content in read_files(paths, problems).items():
        try:
            after = format_definition(content, path, installed())
        except DefinitionError as error:
            problems += error.problems
            continue
        before = content.decode()  # which it can be: formatting has read it
        if before != after:
            changes.append((Path(path), before, after))
    if problems:
        raise DefinitionError(problems)
    for changed, before, after in changes:
        if diff:
            _print_diff(changed, before, after)
        elif check:
            click.echo(f"{changed}: not in the canonical form; run: conveyord fmt {changed}")
        else:
            _replace(changed, after)
            click.echo(f"{changed}: rewritten")
    return EXIT_FAILED if check and changes else 0


def _print_diff(path: Path, before: str, after: str) -> None:
    from difflib import unified_diff

    from conveyord.engine.formatting import hide_secrets
    from conveyord.engine.registry import installed

    old, new = (hide_secrets(text.lstrip("\ufeff"), installed()).splitlines(keepends=True) for text in (before, after))
    sys.stdout.writelines(unified_diff(old, new, str(path), f"{path} (canonical)"))


def _replace(path: Path, text: str) -> None:
    """Write `text` in place of the file, whole or not at all. Raises ConfigError if that cannot be done."""
    from conveyord.core.errors import ConfigError

    target = path.resolve()  # a link stays a link
    try:
        mode = target.stat().st_mode
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; make its folder writable") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        Path(name).chmod(mode & 0o7777)
        Path(name).replace(target)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; it was left as it is") from error
