"""GenEval's metadata line: its model, and reading it off a prompt that follows one of the six official templates."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Tag = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
Color = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
Relation = Literal["left of", "right of", "above", "below"]

COLORS: tuple[str, ...] = get_args(Color)
RELATIONS: tuple[str, ...] = get_args(Relation)
NUMBERS = {"two": 2, "three": 3, "four": 4}
MOST_OBJECTS = 16
"""Objects of one class the verdict looks at; no clause can ask for more."""

_Index = Annotated[int, Field(strict=True, ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Clause(_Model):
    """``count`` objects of a class, each of ``color``, each standing in a relation to those of an earlier clause."""

    name: str = Field(alias="class", min_length=1)
    count: Annotated[int, Field(strict=True, ge=1, le=MOST_OBJECTS)]
    color: Color | None = None
    position: tuple[Relation, _Index] | None = None


class Exclusion(_Model):
    """Fewer than ``count`` objects of a class."""

    name: str = Field(alias="class", min_length=1)
    count: Annotated[int, Field(strict=True, ge=1)]


class Metadata(_Model):
    """One line of GenEval's metadata. ``prompt`` is carried along and not compared with the prompt of the item."""

    tag: Tag
    include: tuple[Clause, ...] = Field(min_length=1)
    exclude: tuple[Exclusion, ...] = ()
    prompt: str | None = None

    @model_validator(mode="after")
    def _targets_come_first(self) -> Self:
        for index, clause in enumerate(self.include):
            if clause.position and clause.position[1] >= index:
                raise ValueError(
                    f"include.{index}.position refers to clause {clause.position[1]}, which is not an earlier clause"
                )
        return self

    def line(self) -> dict[str, Any]:
        """The metadata as GenEval writes it, with the fields that were given."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class BadMetadataError(ValueError):
    """The metadata is no GenEval metadata line, or names what this service does not know."""


class NoTemplateError(ValueError):
    """The prompt follows none of the six templates."""


def read_metadata(raw: Mapping[str, Any]) -> Metadata:
    """Validate a metadata line. Raises BadMetadataError naming each wrong field."""
    try:
        return Metadata.model_validate(dict(raw))
    except ValidationError as error:
        faults = (
            ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise BadMetadataError("; ".join(faults)) from None


def check_vocabulary(metadata: Metadata, classes: Sequence[str], colors: Sequence[str]) -> None:
    """Raise BadMetadataError for a class or color that can never be detected."""
    asked = [(f"include.{index}.class", clause.name, classes) for index, clause in enumerate(metadata.include)]
    asked += [(f"exclude.{index}.class", clause.name, classes) for index, clause in enumerate(metadata.exclude)]
    asked += [(f"include.{i}.color", clause.color, colors) for i, clause in enumerate(metadata.include) if clause.color]
    for field, word, vocabulary in asked:
        if word not in vocabulary:
            raise BadMetadataError(f"{field}: {word!r} is not among {_listed(vocabulary)}")


class Templates:
    """The six prompt templates over a vocabulary of classes and colors."""

    def __init__(self, classes: Sequence[str], colors: Sequence[str] = COLORS) -> None:
        self._classes = tuple(classes)
        self._singular = {spelling: name for name in classes for spelling in _plurals(name)}
        one, many, color = _any_of(classes), _any_of(self._singular), _any_of(colors)
        templates: dict[Tag, str] = {
            "single_object": f"an? (?P<a>{one})",
            "colors": f"an? (?P<a_color>{color}) (?P<a>{one})",
            "counting": f"(?P<number>{_any_of(NUMBERS)}) (?P<many>{many})",
            "two_object": f"an? (?P<a>{one}) and an? (?P<b>{one})",
            "position": f"an? (?P<a>{one}) (?P<relation>{_any_of(RELATIONS)}) an? (?P<b>{one})",
            "color_attr": f"an? (?P<a_color>{color}) (?P<a>{one}) and an? (?P<b_color>{color}) (?P<b>{one})",
        }
        self._patterns = {tag: re.compile(f"a photo of {pattern}") for tag, pattern in templates.items()}

    def parse(self, prompt: str) -> Metadata:
        """The metadata of a prompt; case, spacing and a final full stop do not matter. Raises NoTemplateError."""
        text = " ".join(prompt.lower().split()).removesuffix(".")
        for tag, pattern in self._patterns.items():
            match = pattern.fullmatch(text)
            if match:
                words = match.groupdict()
                if words.get("a") and words.get("a") == words.get("b"):
                    break  # two clauses of one class could not both be counted exactly
                return Metadata.model_validate({"tag": tag, **self._clauses(tag, words), "prompt": prompt})
        raise NoTemplateError(
            f"prompt {prompt!r} follows none of GenEval's six templates over {_listed(self._classes)}: send metadata"
        )

    def _clauses(self, tag: Tag, words: dict[str, str]) -> dict[str, Any]:
        if tag == "counting":
            name, count = self._singular[words["many"]], NUMBERS[words["number"]]
            return {
                "include": [{"class": name, "count": count}],
                "exclude": [{"class": name, "count": count + 1}],
            }
        include: list[dict[str, Any]] = []
        for slot in ("a", "b"):
            if slot in words:
                clause: dict[str, Any] = {"class": words[slot], "count": 1}
                if f"{slot}_color" in words:
                    clause["color"] = words[f"{slot}_color"]
                include.append(clause)
        if tag == "position":
            include.reverse()
            include[1]["position"] = [words["relation"], 0]
        return {"include": include}


def _plurals(name: str) -> tuple[str, str]:
    """Both regular spellings; GenEval itself writes -es after an s only ("toothbrushs")."""
    return f"{name}s", f"{name}es"


def _any_of(words: Sequence[str] | Mapping[str, Any]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _listed(words: Sequence[str]) -> str:
    shown = ", ".join(words[:12])
    return shown if len(words) <= 12 else f"{shown} and {len(words) - 12} more"
