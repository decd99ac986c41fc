"""The one canonical form of a definition: what `conveyord fmt` writes.

Keys have their canonical spelling and place, blocks their indentation, and a bare pipeline its `apiVersion`, `kind`,
`metadata` and `spec`. Scalars and flow collections (`{...}`, `[...]`) stay as they are written, and so does every
comment. What is loaded from the text is the same before and after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from yaml.error import YAMLError

from conveyord.core.pipeline.manifest import API_VERSION, GRAPH_KEYS
from conveyord.engine.definition_keys import keyed_entries
from conveyord.engine.problems import DefinitionError, Problem
from conveyord.engine.registry import Registry
from conveyord.engine.yaml_layout import Collection, Entry, Leaf, Page, leaves, write_pages
from conveyord.engine.yaml_reading import comments, read_pages
from conveyord.engine.yaml_source import YamlText

ROOT_ORDER = ("apiVersion", "kind", "metadata", "spec")
METADATA_ORDER = ("name", "namespace", "labels", "annotations")
SPEC_ORDER = (
    "type",
    "mode",
    "enabled",
    "source",
    "sources",
    "steps",
    "transforms",
    "sink",
    "sinks",
    "edges",
    "dlq",
    "tests",
)
HIDDEN = "***"

# Values under such keys are hidden wherever they stand: catalogs and services take free properties.
_SECRET_KEY = re.compile(r"passw|secret|token|credential|access[-_.]?key|api[-_.]?key|private[-_.]?key", re.IGNORECASE)
_REFERENCE = re.compile(r"(env|file):.+")


@dataclass(frozen=True, slots=True)
class _Edit:
    """Replace the characters `[first, end)` of a text."""

    first: int
    end: int
    text: str


def format_definition(content: bytes, path: str, registry: Registry) -> str:
    """The canonical text of a definition file. `path` is only shown.

    Raises DefinitionError if the file is not YAML as definitions take it; what the keys mean is not checked.
    """
    source = _checked(content, path)
    try:
        renamed = _renamed(source, registry)
        pages = read_pages(renamed)
        for page in pages:
            _arrange(page)
        written = write_pages(pages)
        _check_nothing_lost(source, written, path)
    except YAMLError as error:
        raise DefinitionError(
            [Problem(path, 0, 0, "cannot be written in the canonical form; nothing was changed")]
        ) from error
    return written


def hide_secrets(text: str, registry: Registry) -> str:
    """`text` with the values of secrets replaced, for showing. References (`env:`, `file:`) are no secrets."""
    edits = []
    for page in read_pages(text):
        for keyed in keyed_entries(page, registry):
            value = keyed.entry.value
            named = keyed.entry.key is not None and _SECRET_KEY.search(keyed.entry.key.value)
            if (
                isinstance(value, Leaf)
                and value.value
                and (keyed.secret or named)
                and not _REFERENCE.fullmatch(value.value)
            ):
                edits.append(_Edit(keyed.entry.end - len(value.text), keyed.entry.end, HIDDEN))
    return _edited(text, edits)


def _checked(content: bytes, path: str) -> str:
    """The text of a file with plain line ends. Raises DefinitionError."""
    yaml = YamlText(path, content)
    yaml.documents(lambda text: text)  # variables mean nothing here
    problems = list(yaml.problems)
    for number, line in enumerate(yaml.text.split("\n"), 1):
        if line.startswith("%"):
            problems.append(Problem(path, number, 1, "directives (%...) are not supported; remove the line", line))
            break
        if line.startswith("---"):
            break
    if problems:
        raise DefinitionError(problems)
    return yaml.text.replace("\r\n", "\n").replace("\r", "\n")


def _renamed(text: str, registry: Registry) -> str:
    """`text` with aliases of keys replaced by the canonical keys."""
    edits = []
    for page in read_pages(text):
        for keyed in keyed_entries(page, registry):
            key = keyed.entry.key
            if key is None or keyed.canonical in (None, key.value) or keyed.has_canonical:
                continue
            # The quotes stay: in a flow mapping `"a":1` would else become one word.
            new = key.text.replace(key.value, str(keyed.canonical))
            edits.append(_Edit(keyed.entry.first, keyed.entry.first + len(key.text), new))
    return _edited(text, edits)


def _edited(text: str, edits: Iterable[_Edit]) -> str:
    parts, at = [], 0
    for edit in sorted(edits, key=lambda edit: edit.first):
        parts += [text[at : edit.first], edit.text]
        at = edit.end
    return "".join([*parts, text[at:]])


def _arrange(page: Page) -> None:
    root = page.root
    if not isinstance(root, Collection) or not root.mapping or not _opened(root):
        return
    # An alias must stay behind its anchor.
    movable = not any(leaf.text.startswith("*") for leaf in leaves(page))
    if root.entry("apiVersion") is None and root.entry("kind") is None and any(map(root.entry, GRAPH_KEYS)):
        _lift(root)
    _unnest_config(root)
    if movable:
        _sort(root, ROOT_ORDER)
        _sort(_block_at(root, "metadata"), METADATA_ORDER)
        _sort(_block_at(root, "spec"), SPEC_ORDER)


def _opened(collection: Collection) -> bool:
    """Make a flow collection a block, if no comment lies in it. Whether it is a block now."""
    if collection.flow:
        if comments(collection.text or ""):
            return False
        collection.flow, collection.text = False, None
    return True


def _block_at(root: Collection, key: str) -> Collection | None:
    entry = root.entry(key)
    value = None if entry is None else entry.value
    return value if isinstance(value, Collection) and not value.flow else None


def _sort(collection: Collection | None, order: Sequence[str]) -> None:
    """Put the entries of a mapping in `order`; others keep theirs, behind."""
    if collection is None or not collection.mapping:
        return
    places = {key: place for place, key in enumerate(order)}
    collection.entries.sort(key=lambda entry: places.get(entry.key.value if entry.key else "", len(order)))


def _lift(root: Collection) -> None:
    """Give a bare pipeline its envelope."""
    name, rest = root.entry("name"), [entry for entry in root.entries if entry.key is None or entry.key.value != "name"]
    envelope = [_entry("apiVersion", Leaf(API_VERSION, API_VERSION)), _entry("kind", Leaf("Pipeline", "Pipeline"))]
    if name is not None:
        metadata = _entry("metadata", Collection(mapping=True, entries=[name]))
        metadata.before, name.before = name.before, []
        envelope.append(metadata)
    spec = _entry("spec", Collection(mapping=True, entries=rest, after=root.after))
    root.entries, root.after = [*envelope, spec], []


def _unnest_config(root: Collection) -> None:
    """Put the options of a resource beside its type, where one of the dialects has them in `config`."""
    kind, spec = root.entry("kind"), root.entry("spec")
    inside = None if spec is None else spec.value
    if kind is None or not isinstance(kind.value, Leaf) or kind.value.value not in ("Source", "Transform", "Sink"):
        return
    if not isinstance(inside, Collection) or {entry.key.value for entry in inside.entries if entry.key} != {
        "type",
        "config",
    }:
        return
    config = inside.entry("config")
    assert config is not None
    options = config.value
    if not isinstance(options, Collection) or not options.mapping or not options.entries or options.anchor:
        return
    if not (_opened(options) and _opened(inside)):
        return
    above = config.before + ([config.beside.lstrip()] if config.beside else [])
    first = options.entries[0]
    first.before = above + [line for index, line in enumerate(first.before) if line or any(first.before[:index])]
    at = inside.entries.index(config)
    inside.entries[at : at + 1] = options.entries
    inside.after = options.after + inside.after


def _entry(key: str, value: Leaf | Collection) -> Entry:
    return Entry(Leaf(key, key), value, column=0, first=0, end=0)


def _check_nothing_lost(before: str, after: str, path: str) -> None:
    """Raise DefinitionError if a value or a comment got lost: better no format than a wrong one."""
    if comments(before) != comments(after) or sorted(_values(before)) != sorted(_values(after)):
        reason = "cannot be written in the canonical form without a loss; nothing was changed"
        raise DefinitionError([Problem(path, 0, 0, reason)])


def _values(text: str) -> Iterator[str]:
    for page in read_pages(text):
        root = page.root
        lifted = isinstance(root, Collection) and root.entry("apiVersion") is None and root.entry("kind") is None
        if lifted and isinstance(root, Collection) and any(map(root.entry, GRAPH_KEYS)):
            yield from (API_VERSION, "Pipeline")
        yield from (leaf.value or leaf.text for leaf in leaves(page))
