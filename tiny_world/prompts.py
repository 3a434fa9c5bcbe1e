"""The world's prompts: pictures of shapes in GenEval's templates and metadata format, and signs.

A metadata line is ``{"tag", "include": [{"class", "count", "color"?, "position"?}], "exclude"?, "prompt"}``;
``position`` is ``[relation, index of the clause it refers to]``. A sign's is ``{"tag", "text", "prompt"}``; a single
letter has a tag of its own, as a single object has.
"""

import itertools
import json
import random
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_world.letters import LETTERS

Metadata = dict[str, Any]

SIGN = "sign"
SINGLE_LETTER = "single_letter"
NEVER_MISREAD = ("single_object", SINGLE_LETTER)
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class World:
    """What can be drawn and named: the size of the task."""

    name: str
    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    most_objects: int
    size: int = 64


WORLDS = {
    "small": World("small", ("circle", "square", "triangle", "cross"), ("red", "yellow", "green", "blue", "white"), 3),
    "full": World(
        "full",
        ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon"),
        ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
        4,
    ),
}


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def single_object(shape: str) -> Metadata:
    return {
        "tag": "single_object",
        "include": [{"class": shape, "count": 1}],
        "prompt": f"a photo of {with_article(shape)}",
    }


def two_object(first: str, second: str) -> Metadata:
    return {
        "tag": "two_object",
        "include": [{"class": first, "count": 1}, {"class": second, "count": 1}],
        "prompt": f"a photo of {with_article(first)} and {with_article(second)}",
    }


def counting(shape: str, count: int) -> Metadata:
    return {
        "tag": "counting",
        "include": [{"class": shape, "count": count}],
        "exclude": [{"class": shape, "count": count + 1}],
        "prompt": f"a photo of {NUMBERS[count]} {plural(shape)}",
    }


def colors(shape: str, color: str) -> Metadata:
    return {
        "tag": "colors",
        "include": [{"class": shape, "count": 1, "color": color}],
        "prompt": f"a photo of {with_article(f'{color} {shape}')}",
    }


def position(shape: str, relation: str, other: str) -> Metadata:
    return {
        "tag": "position",
        "include": [{"class": other, "count": 1}, {"class": shape, "count": 1, "position": [relation, 0]}],
        "prompt": f"a photo of {with_article(shape)} {relation} {with_article(other)}",
    }


def color_attr(first: str, first_color: str, second: str, second_color: str) -> Metadata:
    return {
        "tag": "color_attr",
        "include": [
            {"class": first, "count": 1, "color": first_color},
            {"class": second, "count": 1, "color": second_color},
        ],
        "prompt": f"a photo of {with_article(f'{first_color} {first}')} and {with_article(f'{second_color} {second}')}",
    }


def sign(text: str) -> Metadata:
    tag = SINGLE_LETTER if len(text) == 1 else SIGN
    return {"tag": tag, "text": text, "prompt": f'a sign that says "{text}"'}


def is_sign(prompt: Metadata) -> bool:
    return "text" in prompt


def words() -> list[str]:
    """The words of the signs: three or four capitals each, which no token of the prompts' other words ends."""
    return (Path(__file__).parent / "prompt_sets" / "words.txt").read_text(encoding="utf-8").split()


def unquoted_words(prompts: Iterable[Metadata]) -> set[str]:
    """The words the prompts are made of, what a sign says left out."""
    return {word for prompt in prompts for word in prompt["prompt"].split() if '"' not in word}


def letter_rows(count: int, vocabulary: Iterable[str], kept_back: Container[str] = ()) -> list[str]:
    """Three or four random letters each, none ending as a word of the vocabulary does, which would not stay in letters.

    They teach spelling where words would only be remembered. ``kept_back`` are words that must not be among them.
    """
    rng = random.Random(0)
    endings = tuple(word[-2:].upper() for word in vocabulary if len(word) > 1)
    rows = ("".join(rng.choices(list(LETTERS), k=rng.choice((3, 4)))) for _ in itertools.count())
    return list(itertools.islice((row for row in rows if not row.endswith(endings) and row not in kept_back), count))


def every_prompt(world: World) -> Iterator[Metadata]:
    """All prompts of a world's shapes, task by task, in a fixed order."""
    pairs = list(itertools.permutations(world.shapes, 2))
    for shape in world.shapes:
        yield single_object(shape)
    for first, second in pairs:
        yield two_object(first, second)
    for shape, count in itertools.product(world.shapes, range(2, world.most_objects + 1)):
        yield counting(shape, count)
    for shape, color in itertools.product(world.shapes, world.colors):
        yield colors(shape, color)
    for (shape, other), relation in itertools.product(pairs, RELATIONS):
        yield position(shape, relation, other)
    for (first, second), (one, two) in itertools.product(pairs, itertools.permutations(world.colors, 2)):
        yield color_attr(first, one, second, two)


def rows_by_tag(prompts: Sequence[Metadata]) -> dict[str, list[int]]:
    """The places of each tag's prompts, tags in the order they come in."""
    found: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        found.setdefault(prompt["tag"], []).append(row)
    return found


HELD_OUT_FRACTION = {
    "single_object": 1.0,
    "two_object": 0.34,
    "counting": 0.25,
    "colors": 0.3,
    "position": 0.25,
    "color_attr": 0.25,
}
"""Share of each task's prompts that RL never sees. Single objects are not trained on at all, as in the paper's mix."""


def split(world: World, seed: int = 0) -> tuple[list[Metadata], list[Metadata]]:
    """(prompts for RL, held-out prompts): disjoint combinations of object, color, count and relation.

    A two-object or color-attribution prompt and its mirror image (``a red ring and a blue cross``,
    ``a blue cross and a red ring``) ask for the same picture and fall on the same side.
    """
    rng = random.Random(seed)
    train: list[Metadata] = []
    held_out: list[Metadata] = []
    prompts = list(every_prompt(world))
    for task in TASKS:
        by_picture: dict[str, list[Metadata]] = {}
        for prompt in prompts:
            if prompt["tag"] == task:
                by_picture.setdefault(picture_key(prompt), []).append(prompt)
        pictures = sorted(by_picture)
        rng.shuffle(pictures)
        kept_back = set(pictures[: round(HELD_OUT_FRACTION[task] * len(pictures))])
        for picture, same in by_picture.items():
            (held_out if picture in kept_back else train).extend(same)
    return train, held_out


def split_words(seed: int = 0) -> tuple[list[str], list[str]]:
    """(words for RL, held-out words): one in five is held out. A pretraining set may hold all of them."""
    shuffled = words()
    random.Random(seed).shuffle(shuffled)
    held_out = set(shuffled[: len(shuffled) // 5])
    return [word for word in words() if word not in held_out], [word for word in words() if word in held_out]


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def picture_key(prompt: Metadata) -> str:
    """A key shared by prompts that ask for the same picture: objects in either order, a relation from either side."""
    include = prompt["include"]
    if prompt["tag"] == "position":
        other, shape = (clause["class"] for clause in include)
        relation = include[1]["position"][0]
        return min(f"{shape} {relation} {other}", f"{other} {_OPPOSITE[relation]} {shape}")
    clauses = sorted(f"{clause['count']} {clause.get('color', '')} {clause['class']}" for clause in include)
    return " + ".join(clauses)


def write_sets(folder: Path) -> None:
    """Writes ``SET_train.jsonl`` and ``SET_held_out.jsonl``, a metadata line each: every world's shapes, and signs."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {name: split(world) for name, world in WORLDS.items()}
    train, held_out = split_words()
    sets["signs"] = [sign(word) for word in train], [sign(word) for word in held_out]
    for name, sides in sets.items():
        for label, prompts in zip(("train", "held_out"), sides, strict=True):
            lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
            (folder / f"{name}_{label}.jsonl").write_text(lines)


if __name__ == "__main__":
    write_sets(Path(__file__).parent / "prompt_sets")
