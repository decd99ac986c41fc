"""The habits of CONTRIBUTING.md that no linter checks. Each rule is also shown a violation, so it can fail.

A rule takes one file (its path within the repository and its text) and yields what is wrong with it.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|managers?)$")
TODO = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))")
VERB = re.compile(r"(?:^|[\s`])(?:\.venv/bin/)?conveyord(?:ctl)? ([a-z][a-z-]+)", re.MULTILINE)
# Where nurseries may be handed on: the graph runner owns them, the runtime will.
NURSERY_HOMES = ("conveyord/runtime/", "conveyord/engine/graph.py")
PRINT_HOMES = ("conveyord/cli/", "conveyord/__main__.py", "conveyord/operators/sink_stdout_pretty.py")


@dataclass(frozen=True)
class Source:
    """One Python file of the repository."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def shipped(self) -> bool:
        return self.path.startswith("conveyord/")


Rule = Callable[[Source], Iterator[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(source: Source) -> Iterator[Function]:
    return (node for node in ast.walk(source.tree) if isinstance(node, Function))


def file_length(source: Source) -> Iterator[str]:
    if len(source.lines) > FILE_LINES_MAX:
        yield f"{len(source.lines)} lines, at most {FILE_LINES_MAX}"


def function_length(source: Source) -> Iterator[str]:
    for node in _functions(source):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES_MAX:
            yield f"{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES_MAX}"


def nursery_stays_local(source: Source) -> Iterator[str]:
    if not source.shipped or source.path.startswith(NURSERY_HOMES):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and "nursery" in node.attr:
            yield f"{node.lineno}: a nursery is kept on an object"
        if isinstance(node, ast.arg) and "nursery" in node.arg:
            yield f"{node.lineno}: a nursery is passed as a parameter"


def channels_are_bounded(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if "open_memory_channel" in called and any("inf" in ast.unparse(arg) for arg in node.args):
            yield f"{node.lineno}: an unbounded channel"


def no_global(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: global {', '.join(node.names)}"


def todo_names_an_issue(source: Source) -> Iterator[str]:
    if source.path == "tests/test_tidy.py":
        return
    for number, line in enumerate(source.lines, 1):
        if TODO.search(line):
            yield f"{number}: a TODO without an issue number; write TODO(#12)"


def public_names_are_documented(source: Source) -> Iterator[str]:
    if not source.shipped:
        return
    if not ast.get_docstring(source.tree):
        yield "1: the module has no docstring"
    for node in source.tree.body:
        public = isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_")
        if public and not ast.get_docstring(node):
            yield f"{node.lineno}: {node.name} has no docstring"


def only_the_shell_prints(source: Source) -> Iterator[str]:
    if not source.shipped or source.path.startswith(PRINT_HOMES):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{node.lineno}: print() outside the command line"


def names_say_what(source: Source) -> Iterator[str]:
    for part in PurePosixPath(source.path).with_suffix("").parts:
        if FORBIDDEN_NAMES.search(part):
            yield f"1: nothing is called {part}; name it after what it does"


RULES: dict[Rule, tuple[str, str]] = {
    file_length: ("conveyord/a.py", "x = 1\n" * (FILE_LINES_MAX + 1)),
    function_length: ("conveyord/a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
    nursery_stays_local: ("conveyord/roles/a.py", "def f(nursery):\n    self._nursery = nursery\n"),
    channels_are_bounded: ("conveyord/a.py", "trio.open_memory_channel[int](math.inf)\n"),
    no_global: ("conveyord/a.py", "def f():\n    global x\n"),
    todo_names_an_issue: ("conveyord/a.py", "# TODO mend this\n"),
    public_names_are_documented: ("conveyord/a.py", '"""Doc."""\n\ndef f():\n    pass\n'),
    only_the_shell_prints: ("conveyord/engine/a.py", "print(1)\n"),
    names_say_what: ("conveyord/core/string_utils.py", ""),
}
ALLOWED = (
    (nursery_stays_local, "conveyord/runtime/a.py", "def f(nursery): ...\n"),
    (todo_names_an_issue, "conveyord/a.py", "# TODO(#7): mend this\n"),
    (only_the_shell_prints, "conveyord/cli/a.py", "print(1)\n"),
    (channels_are_bounded, "conveyord/a.py", "trio.open_memory_channel[int](4)\n"),
    (names_say_what, "conveyord/core/utility_curve.py", ""),
)


def _sources() -> Iterator[Source]:
    for folder in ("conveyord", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


@cache
def _wrong() -> dict[Rule, list[str]]:
    """What every rule finds. Each file is read and parsed once for all of them, which takes most of the time."""
    found: dict[Rule, list[str]] = {rule: [] for rule in RULES}
    for source in _sources():
        for rule, wrong in found.items():
            wrong += [f"{source.path}:{problem}" for problem in rule(source)]
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule: Rule) -> None:
    wrong = _wrong()[rule]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_violation_is_caught_by(rule: Rule) -> None:
    path, text = RULES[rule]
    assert list(rule(Source(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_allowed_passes(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(Source(path, text)))


def _untested(modules: list[str], tests: str) -> list[str]:
    """The dotted core modules that no test names, as `from a.b.c import` or `from a.b import c`."""

    def named(module: str) -> bool:
        package, _, leaf = module.rpartition(".")
        direct = rf"\b{re.escape(module)}\b"
        member = rf"from {re.escape(package)} import [^\n]*\b{leaf}\b"
        return bool(re.search(f"{direct}|{member}", tests))

    return [module for module in modules if not named(module)]


def test_every_core_module_has_a_test_that_names_it() -> None:
    core = ROOT / "conveyord" / "core"
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(core.rglob("*.py"))
        if path.name != "__init__.py"
    ]
    lines = (line for path in (ROOT / "tests").rglob("test_*.py") for line in path.read_text("utf-8").splitlines())
    assert not _untested(modules, "\n".join(line for line in lines if "conveyord.core" in line))


def test_a_core_module_without_a_test_is_caught() -> None:
    tests = "from conveyord.core.flow import acks\nimport conveyord.core.units\n"
    modules = ["conveyord.core.flow.acks", "conveyord.core.units", "conveyord.core.flow.tally"]
    assert _untested(modules, tests) == ["conveyord.core.flow.tally"]


def _broken_modules(package: str, folders: list[str]) -> list[str]:
    """The modules below `package`, itself included, that cannot be imported, each with the reason."""
    modules = [
        package,
        *(found.name for found in pkgutil.walk_packages(folders, f"{package}.", onerror=lambda _: None)),
    ]
    broken = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a module raises while it is imported, it is broken
            broken.append(f"{module}: {error}")
    return broken


def test_every_module_can_be_imported() -> None:
    """A refactoring that is half done must not be committed."""
    assert _broken_modules("conveyord", [str(ROOT / "conveyord")]) == []


def test_a_module_that_cannot_be_imported_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_done" / "inner").mkdir(parents=True)
    (tmp_path / "half_done" / "__init__.py").write_text("")
    (tmp_path / "half_done" / "moved.py").write_text("from half_done import gone\n")
    (tmp_path / "half_done" / "inner" / "__init__.py").write_text("raise RuntimeError('at import')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = _broken_modules("half_done", [str(tmp_path / "half_done")])
    assert [entry.partition(":")[0] for entry in broken] == ["half_done.inner", "half_done.moved"]


def _unknown_verbs(text: str, known: set[str]) -> set[str]:
    """Verbs used in the code (fenced blocks and inline spans) of a Markdown `text` that do not exist."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return {verb for code in (*fenced, *inline) for verb in VERB.findall(code)} - known


def test_the_commands_in_the_documents_exist() -> None:
    from conveyord.cli.main import conveyorctl, conveyord

    known = set(conveyord.commands) | set(conveyorctl.commands)
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    missing = {
        path.name: unknown for path in documents if (unknown := _unknown_verbs(path.read_text(encoding="utf-8"), known))
    }
    assert not missing


def test_a_command_that_does_not_exist_is_caught() -> None:
    text = "Say `conveyord frobnicate x` or\n```sh\nconveyord run a.yaml\n```\nconveyord is fine prose.\n"
    assert _unknown_verbs(text, {"run"}) == {"frobnicate"}
