"""What a definition says about one stage: inline, by reference, or as a resource of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

NAME_CHARS_MAX = 128  # names become table properties, file names and metric labels

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_name(name: str) -> str:
    """`name`, if it can be a key and a file name. Raises ValueError with a sentence if not."""
    if len(name) > NAME_CHARS_MAX:
        raise ValueError(f"a name has at most {NAME_CHARS_MAX} characters, this one has {len(name)}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name: {name!r}; use letters, digits, '.', '_' and '-', a letter or digit at both ends")
    return name


def _check_reference(text: str) -> str:
    for name in text.split("/", 1):
        check_name(name)
    return text


def is_reference(text: str) -> bool:
    """Whether `text` can be a `Reference`."""
    try:
        _check_reference(text)
    except ValueError:
        return False
    return True


Name = Annotated[str, AfterValidator(check_name)]
"""The name of a resource, a namespace or a stage."""

Reference = Annotated[str, AfterValidator(_check_reference)]
"""The name of a resource: `name` in the own namespace, or `namespace/name`."""


class StageSpec(BaseModel):
    """One stage, written inline. The keys beyond `type` and `name` belong to the operator."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(description="The operator's type, as `conveyord plugins` lists them.")
    name: Name | None = Field(
        default=None,
        validation_alias=AliasChoices("name", "id"),
        description="Unique in the pipeline. Positions and counts are kept by it.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The operator's own keys, as written. The registry validates them against the operator's model."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _one_name(self) -> StageSpec:
        if self.name is not None and "id" in (self.model_extra or {}):
            raise ValueError("'id' is another spelling of 'name'; give one of them")
        return self


def _entry_tag(value: object) -> str:
    return "reference" if isinstance(value, str) else "inline"


StageEntry = Annotated[
    Annotated[Reference, Tag("reference")] | Annotated[StageSpec, Tag("inline")],
    Discriminator(_entry_tag),
]
"""A stage of a pipeline: written inline, or the name of a resource of the right kind."""


class ResourceSpec(BaseModel):
    """The `spec` of a Source, Transform or Sink: its type, and the operator's keys beside it or in `config`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(description="The operator's type, as `conveyord plugins` lists them.")


def nested_in_config(options: Mapping[str, Any]) -> bool:
    """Whether a resource's options all stand in a mapping `config`, as one of the dialects has it."""
    return set(options) == {"config"} and isinstance(options["config"], dict)


def stage_names(wanted: Sequence[tuple[str | None, str]]) -> list[str]:
    """A unique name for each stage that has none. `wanted`: the given name if any, and the default.

    A default that is taken gets a number: `filter-2`. Given names are not changed, even if two are
    equal. A source's name is stored in fences, so this rule is part of the interface.
    """
    taken = {given for given, _ in wanted if given is not None}
    names = []
    for given, default in wanted:
        name, number = given or default, 1
        while given is None and name in taken:
            number += 1
            name = f"{default}-{number}"
        taken.add(name)
        names.append(name)
    return names
