"""A problem in a file a user wrote, and the one place where such problems are turned into text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from conveyord.core.errors import ConfigError

MASK = "***"
LINE_CHARS_MAX = 160  # a generated one-line file must not fill the screen
KEPT_CHARS_MAX = 4096  # of a line: enough to look for secrets around what is shown
SHOWN_MAX = 1_000  # of problems; someone who sees so many mends the first and looks again
_NAMED_SECRET = re.compile(
    r"""(?:password|passwd|secret|token|credential|(?:api|access|private|account)[-_.]?key)[\w.-]*["']?\s*:\s+"""
    r"""(?P<value>"[^"]*"?|'[^']*'?|[^\s,}\]"'][^,}\]]*)""",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://[^\s\"']*", re.IGNORECASE)
_USER_OF_ADDRESS = re.compile(r"(?<=://)(?P<value>.*)@")
_QUERY_OF_ADDRESS = re.compile(r"[?&;][^?=&;#]*=(?P<value>[^&;#]+)")
_HARMLESS = (MASK, "env:", "file:", "'env:", '"env:', "'file:", '"file:', "${", '"${', "{", "[", "*", "&", "|", ">")
_BOLD, _RED, _DIM, _RESET = "\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong. `line` and `column` count from 1; 0 says that there is no such place.

    source_line: the line, or a part of it around the place. caret: the column in it that is pointed at.
    """

    path: str
    line: int
    column: int
    message: str
    source_line: str = ""
    caret: int = -1

    def __post_init__(self) -> None:
        if self.caret < 0:
            object.__setattr__(self, "caret", self.column)

    @classmethod
    def within(cls, path: str, line: int, column: int, message: str, source_line: str) -> Problem:
        """A problem that keeps only a part of a very long line, because many may point into the same one."""
        start = max(0, column - KEPT_CHARS_MAX // 2) if len(source_line) > KEPT_CHARS_MAX else 0
        kept = source_line[start : start + KEPT_CHARS_MAX]
        return cls(path, line, column, message, kept, column - start)

    def masked(self, start: int, end: int) -> Problem:
        """Itself with `source_line[start:end]` hidden, and the caret moved along."""
        start, end = max(0, start), max(0, end)
        if end == 0 or start >= len(self.source_line):
            return self
        caret = self.caret
        if caret > end:
            caret += len(MASK) - (end - start)
        elif caret > start:
            caret = start + 1
        return replace(self, source_line=self.source_line[:start] + MASK + self.source_line[end:], caret=caret)

    def without_named_secrets(self) -> Problem:
        """Itself with what may be a secret hidden although no operator has said it is one.

        That is what follows a key such as `password`, and in an address the user and the values of its query.
        """
        problem = self._without_secrets_of_addresses()
        for match in reversed(list(_NAMED_SECRET.finditer(problem.source_line))):
            if not match["value"].startswith(_HARMLESS):
                problem = problem.masked(match.start("value"), match.end("value"))
        return problem

    def _without_secrets_of_addresses(self) -> Problem:
        problem = self
        for address in reversed(list(_ADDRESS.finditer(self.source_line))):
            user = _USER_OF_ADDRESS.search(address[0])
            query = _QUERY_OF_ADDRESS.finditer(address[0], 0 if user is None else user.end())
            found = [*([] if user is None else [user]), *query]
            for match in reversed(found):
                if match["value"] != MASK:
                    problem = problem.masked(
                        address.start() + match.start("value"), address.start() + match.end("value")
                    )
        return problem


class DefinitionError(ConfigError):
    """A definition that cannot be used. `problems` holds all of them, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__(render(self.problems))


def render(problems: Sequence[Problem], *, colour: bool = False) -> str:
    """All problems as text: `path:line:column: message`, the line itself, and a caret below the place."""
    text = "\n".join(_render_one(problem, colour=colour) for problem in problems[:SHOWN_MAX])
    return text if len(problems) <= SHOWN_MAX else f"{text}\n... and {len(problems) - SHOWN_MAX} more problems"


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
    excerpt, column = _excerpt(problem.source_line, problem.caret)
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
