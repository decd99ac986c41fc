"""A problem in a file a user wrote, and the one place where such problems are turned into text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conveyord.core.errors import ConfigError

LINE_CHARS_MAX = 160  # a generated one-line file must not fill the screen
_BOLD, _RED, _DIM, _RESET = "\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong. `line` and `column` count from 1; 0 says that there is no such place."""

    path: str
    line: int
    column: int
    message: str
    source_line: str = ""


class DefinitionError(ConfigError):
    """A definition that cannot be used. `problems` holds all of them, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__(render(self.problems))


def render(problems: Sequence[Problem], *, colour: bool = False) -> str:
    """All problems as text: `path:line:column: message`, the line itself, and a caret below the place."""
    return "\n".join(_render_one(problem, colour=colour) for problem in problems)


def _render_one(problem: Problem, *, colour: bool) -> str:
    bold, red, dim, reset = (_BOLD, _RED, _DIM, _RESET) if colour else ("", "", "", "")
    place = problem.path
    if problem.line:
        place += f":{problem.line}"
        if problem.column:
            place += f":{problem.column}"
    text = f"{bold}{place}: {reset}{problem.message}"
    if not problem.line or not problem.source_line.strip():
        return text
    excerpt, column = _excerpt(problem.source_line, problem.column)
    text += f"\n  {dim}{excerpt}{reset}"
    if column:
        text += f"\n  {' ' * (column - 1)}{red}^{reset}"
    return text


def _excerpt(line: str, column: int) -> tuple[str, int]:
    """At most LINE_CHARS_MAX characters of `line` around `column`, printable, and the column in them."""
    printable = "".join(char if char.isprintable() else " " for char in line)
    if len(printable) <= LINE_CHARS_MAX:
        return printable.rstrip(), column
    start = max(0, min(column - LINE_CHARS_MAX // 2, len(printable) - LINE_CHARS_MAX))
    return printable[start : start + LINE_CHARS_MAX].rstrip(), max(column - start, 0)
