"""Scenes that satisfy a prompt, and their pictures.

A scene of shapes is sampled so that GenEval's official rules hold with room to spare: shapes never touch, and a
relation is placed close to its axis (the rule takes a tenth of both sizes off the offset before it compares). A sign
is a row of letters of one font and color near the middle.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_world.letters import FONTS, LETTERS, Font, ink
from tiny_world.prompts import NEVER_MISREAD, RELATIONS, World, is_sign
from tiny_world.shapes import GROUND, PALETTE, coverage, extent

_RADII = {1: (9.0, 15.0), 2: (8.5, 12.0), 3: (7.5, 9.5), 4: (7.0, 8.5)}
_GAP = 3.0
_MARGIN = 1.5
_CONE = math.radians(25)
_LETTER_WIDTH, _LETTER_HEIGHT, _LETTER_GAP = 12.5, 20.0, 2.0
_AXIS = {"right of": 0.0, "below": math.pi / 2, "left of": math.pi, "above": -math.pi / 2}


@dataclass(frozen=True)
class Shape:
    """One object: its shape and color names, centre and radius in pixels, and the RGB it is painted in."""

    shape: str
    color: str
    cx: float
    cy: float
    radius: float
    rgb: tuple[int, int, int]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels."""
        x0, y0, x1, y1 = extent(self.shape)
        return (
            self.cx + self.radius * x0,
            self.cy + self.radius * y0,
            self.cx + self.radius * x1,
            self.cy + self.radius * y1,
        )

    def alpha(self, size: int) -> NDArray[np.float32]:
        """How much of each pixel it covers: (size, size) in [0, 1]."""
        return coverage(self.shape, self.cx, self.cy, self.radius, size)


@dataclass(frozen=True)
class Letter:
    """One letter of a sign: its font and color name, centre, width and height in pixels, and its RGB."""

    letter: str
    font: Font
    color: str
    cx: float
    cy: float
    width: float
    height: float
    rgb: tuple[int, int, int]

    @property
    def radius(self) -> float:
        """Half of its height, in pixels."""
        return self.height / 2

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels, without what a slant adds."""
        x, y = self.cx - self.width / 2, self.cy - self.height / 2
        return x, y, x + self.width, y + self.height

    def alpha(self, size: int) -> NDArray[np.float32]:
        """How much of each pixel it covers: (size, size) in [0, 1]."""
        x, y, _, _ = self.box
        return ink(self.letter, self.font, x, y, self.width, self.height, size)


@dataclass(frozen=True)
class Scene:
    """Objects on a gray ground of one level (0 to 255), ``size`` pixels a side."""

    objects: tuple[Shape | Letter, ...]
    ground: int
    size: int


def sample_scene(metadata: dict[str, Any], world: World, rng: random.Random) -> Scene:
    """A scene that shows exactly what the metadata asks for; what it leaves open, colors, places and fonts, is drawn at
    random."""
    if is_sign(metadata):
        return Scene(_letters(metadata["text"], world, rng), _ground(rng), world.size)
    wanted = [(clause["class"], clause.get("color")) for clause in metadata["include"] for _ in range(clause["count"])]
    relations = [clause.get("position") for clause in metadata["include"] for _ in range(clause["count"])]
    centres = _place(len(wanted), relations, world.size, rng)
    objects = []
    for (shape, color), (cx, cy, radius) in zip(wanted, centres, strict=True):
        name = color or rng.choice(world.colors)
        objects.append(Shape(shape, name, cx, cy, radius, _tinted(PALETTE[name], rng)))
    return Scene(tuple(objects), _ground(rng), world.size)


def render(scene: Scene) -> NDArray[np.uint8]:
    """The picture: (size, size, 3) RGB."""
    canvas = np.full((scene.size, scene.size, 3), float(scene.ground), dtype=np.float32)
    for thing in scene.objects:
        alpha = thing.alpha(scene.size)[..., None]
        canvas += alpha * (np.array(thing.rgb, dtype=np.float32) - canvas)
    return np.round(canvas).astype(np.uint8)


def names(world: World) -> int:
    """How many different things ``contents`` can find in a cell."""
    return 1 + len(world.shapes) * len(world.colors) + len(LETTERS)


def contents(scene: Scene, world: World, cells: int) -> NDArray[np.int64]:
    """What is seen in each cell of a grid: (cells, cells), 0 for the ground, else 1 + shape * colors + color, and after
    all those the letters.

    A cell belongs to the shape that covers most of it, if that is at least a quarter, or to the letter in whose box
    its middle lies.
    """
    side = scene.size // cells
    middles = (np.arange(cells) + 0.5) * side
    share = np.full((cells, cells), 0.25)
    found = np.zeros((cells, cells), dtype=np.int64)
    for thing in scene.objects:
        if isinstance(thing, Letter):
            x0, y0, x1, y1 = thing.box
            inside = ((y0 <= middles) & (middles < y1))[:, None] & (x0 <= middles) & (middles < x1)
            found[inside] = 1 + len(world.shapes) * len(world.colors) + list(LETTERS).index(thing.letter)
            continue
        covered = thing.alpha(scene.size).reshape(cells, side, cells, side).mean(axis=(1, 3))
        label = 1 + world.shapes.index(thing.shape) * len(world.colors) + world.colors.index(thing.color)
        found[covered > share] = label
        share = np.maximum(share, covered)
    return found


def misread(metadata: dict[str, Any], world: World, rng: random.Random, right_letters: int = 0) -> dict[str, Any]:
    """The metadata of a picture that a careless caption would describe with this prompt.

    A count, a relation, the binding of an attribute or the spelling of a sign after its first ``right_letters`` is
    changed; single objects and letters have none and stay.
    """
    tag = metadata["tag"]
    if tag in NEVER_MISREAD:
        return metadata
    if is_sign(metadata):
        return {"tag": tag, "text": misspelt(metadata["text"], rng, right_letters)}
    include = [dict(clause) for clause in metadata["include"]]
    if tag == "two_object":
        kept = rng.choice(include)
        include = [{"class": kept["class"], "count": rng.choice((1, 2))}]
    elif tag == "counting":
        counts = [n for n in range(1, world.most_objects + 1) if n != include[0]["count"]]
        include[0]["count"] = rng.choice(counts)
    elif tag == "colors":
        include[0]["color"] = rng.choice([c for c in world.colors if c != include[0]["color"]])
    elif tag == "position":
        relation, target = include[1]["position"]
        include[1]["position"] = [rng.choice([r for r in RELATIONS if r != relation]), target]
    elif tag == "color_attr":
        first, second = include
        if rng.random() < 0.5:
            first["color"], second["color"] = second["color"], first["color"]
        else:
            wrong = rng.choice(include)
            wrong["color"] = rng.choice([c for c in world.colors if c != wrong["color"]])
    return {"tag": tag, "include": include}


def misspelt(text: str, rng: random.Random, right_letters: int = 0) -> str:
    """One to all letters of a text, its first ``right_letters`` left out, replaced by others."""
    letters = list(text)
    open_to_typos = range(right_letters, len(letters))
    for place in rng.sample(open_to_typos, rng.randint(1, len(open_to_typos))):
        letters[place] = rng.choice([letter for letter in LETTERS if letter != letters[place]])
    return "".join(letters)


def _ground(rng: random.Random) -> int:
    return GROUND + rng.randint(-8, 8)


def _tinted(rgb: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, level + rng.randint(-7, 7))) for level in rgb)
    return red, green, blue


def letter_size(font: Font) -> tuple[float, float]:
    """Width and height in pixels of each letter of a sign."""
    return font.width * _LETTER_WIDTH, _LETTER_HEIGHT


def _letters(text: str, world: World, rng: random.Random) -> tuple[Letter, ...]:
    """A row of letters, centred up to a pixel across and four pixels down."""
    font, color = rng.choice(FONTS), rng.choice(world.colors)
    rgb = _tinted(PALETTE[color], rng)
    width, height = letter_size(font)
    pitch = width + _LETTER_GAP
    first = world.size / 2 - pitch * (len(text) - 1) / 2 + rng.uniform(-1, 1)
    cy = world.size / 2 + rng.uniform(-4, 4)
    return tuple(
        Letter(letter, font, color, first + pitch * n, cy, width, height, rgb) for n, letter in enumerate(text)
    )


def _place(
    count: int, relations: list[tuple[str, int] | None], size: int, rng: random.Random
) -> list[tuple[float, float, float]]:
    """(cx, cy, radius) of each object; redrawn until nothing touches and everything is inside."""
    low, high = _RADII[count]
    for _ in range(10_000):
        placed: list[tuple[float, float, float]] = []
        for relation in relations:
            radius = rng.uniform(low, high)
            inset = 1.1 * radius + _MARGIN
            if relation is None:
                cx, cy = rng.uniform(inset, size - inset), rng.uniform(inset, size - inset)
            else:
                name, target = relation
                tx, ty, target_radius = placed[target]
                distance = rng.uniform(1.15 * (radius + target_radius) + _GAP, 0.75 * size)
                angle = _AXIS[name] + rng.uniform(-_CONE, _CONE)
                cx, cy = tx + distance * math.cos(angle), ty + distance * math.sin(angle)
            inside = inset <= cx <= size - inset and inset <= cy <= size - inset
            apart = all(math.hypot(cx - px, cy - py) >= 1.15 * (radius + other) + _GAP for px, py, other in placed)
            if not (inside and apart):
                break
            placed.append((cx, cy, radius))
        else:
            return placed
    raise RuntimeError(f"no room for {count} objects of radius {low} to {high} on {size} pixels")
