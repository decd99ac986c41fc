"""Says what is wrong with text that is not YAML, where the mistake is rather than where it was noticed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

BREAKS = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
"""What libyaml counts as the end of a line."""


def syntax_mistake(error: Exception, text: str, lines: Sequence[str]) -> tuple[int, int, str]:
    """Line and column, both from 1, and a sentence. `lines` are those of `text`."""
    if isinstance(error, ReaderError):
        # libyaml counts bytes of UTF-8.
        position = len(text.encode()[: error.position].decode(errors="ignore"))
        before = BREAKS.split(text[:position])
        character = ord(text[position]) if position < len(text) else 0
        return len(before), len(before[-1]) + 1, f"the character U+{character:04X} is not allowed in YAML; remove it"
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    opened = error.context_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None:
        return 1, 1, f"not YAML: {error}"
    context = str(getattr(error, "context", None) or "")
    last = mark.line >= len(lines) - 2
    at_end = last and not "".join(lines[mark.line :])[mark.column :].strip()
    if opened is not None and at_end and ("flow" in context or "quoted" in context):
        # A quote or bracket left open runs to the end of the file; the mistake is where it began.
        return opened.line + 1, opened.column + 1, "what begins here is not closed before the file ends"
    line = lines[mark.line] if mark.line < len(lines) else ""
    sentence = _sentence(str(getattr(error, "problem", error)), context, line, mark.column, opened)
    return mark.line + 1, mark.column + 1, sentence


def _sentence(problem: str, context: str, line: str, column: int, opened: Any) -> str:
    here = line[column : column + 1]
    if here == "\t":
        return "a tab cannot indent YAML; use spaces"
    if "mapping values are not allowed" in problem:
        return "a second ': ' in one value; put the value in quotes, or the key on its own line"
    if here == "{" and line[column - 1 : column] == "$":
        return 'inside { } and [ ] a variable needs quotes: "${NAME}"'
    if "cannot start any token" in problem:
        return f"a value cannot begin with {here!r}; put it in quotes"
    if here in ("]", "}") and ("expected key" in problem or "expected node" in problem):
        return f"{here!r} closes nothing here; remove it, or put the value in quotes"
    if "expected ','" in problem and opened is not None:
        return f"the bracket in line {opened.line + 1} is still open here; close it, or add a comma"
    if "block" in context and ("expected '-'" in problem or "expected key" in problem):
        return "this line does not fit the ones above; is it indented like them?"
    return f"not YAML: {problem}" + (f" ({context})" if context else "")
