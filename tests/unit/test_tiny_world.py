"""The picture world: prompts, their split, scenes that satisfy them, and pictures of the scenes."""

import itertools
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_world.pretrain.model import TEXT_LENGTH, clip_tokenizer
from tiny_world.prompts import RELATIONS, TASKS, WORLDS, every_prompt, plural, split, with_article
from tiny_world.scenes import Scene, Shape, contents, misread, render, sample_scene
from tiny_world.shapes import OUTLINES, PALETTE, coverage, extent

pytestmark = pytest.mark.unit

ALL = {name: list(every_prompt(world)) for name, world in WORLDS.items()}


def some_prompts(world: str, count: int = 320) -> list[dict[str, Any]]:
    """As many of each task as there are, up to a share of ``count``."""
    rng = random.Random(0)
    chosen: list[dict[str, Any]] = []
    for task in TASKS:
        same = [prompt for prompt in ALL[world] if prompt["tag"] == task]
        chosen += rng.sample(same, min(len(same), math.ceil(count / len(TASKS))))
    return chosen + rng.sample(ALL[world], count - len(chosen)) if len(chosen) < count else chosen


# Prompts


def test_the_worlds_hold_all_their_combinations():
    for name, world in WORLDS.items():
        s, c, n = len(world.shapes), len(world.colors), world.most_objects
        expected = {
            "single_object": s,
            "two_object": s * (s - 1),
            "counting": s * (n - 1),
            "colors": s * c,
            "position": s * (s - 1) * 4,
            "color_attr": s * (s - 1) * c * (c - 1),
        }
        assert Counter(prompt["tag"] for prompt in ALL[name]) == expected
        assert len({prompt["prompt"] for prompt in ALL[name]}) == len(ALL[name])


def test_prompts_read_like_genevals():
    by_text = {prompt["prompt"]: prompt for prompt in ALL["full"]}
    assert by_text["a photo of an orange star and a blue ring"]["include"] == [
        {"class": "star", "count": 1, "color": "orange"},
        {"class": "ring", "count": 1, "color": "blue"},
    ]
    assert by_text["a photo of a moon left of a heart"]["include"] == [
        {"class": "heart", "count": 1},
        {"class": "moon", "count": 1, "position": ["left of", 0]},
    ]
    three = by_text["a photo of three crosses"]
    assert (three["include"], three["exclude"]) == (
        [{"class": "cross", "count": 3}],
        [{"class": "cross", "count": 4}],
    )
    assert (with_article("orange"), with_article("ring"), plural("cross"), plural("star")) == (
        "an orange",
        "a ring",
        "crosses",
        "stars",
    )


def test_every_word_is_one_token_and_every_prompt_fits(tmp_path: Path):
    texts = [prompt["prompt"] for prompt in ALL["full"]]
    words = {word for text in texts for word in text.split()}
    tokenizer = clip_tokenizer(words, tmp_path)
    for text in texts:
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2 <= TEXT_LENGTH, text
    tokens = {word: tokenizer(word).input_ids[1] for word in words}
    assert len(set(tokens.values())) == len(words)


def test_unknown_words_fall_into_pieces(tmp_path: Path):
    tokenizer = clip_tokenizer(["ring", "red"], tmp_path)
    assert len(tokenizer.tokenize("ring")) == 1
    assert len(tokenizer.tokenize("zebra")) > 1


# The split


def picture(prompt: dict[str, Any]) -> frozenset[Any]:
    """What the prompt asks to see, however it is put: a relation seen from either side is the same."""
    include = prompt["include"]
    clauses = frozenset((clause["class"], clause.get("color"), clause["count"]) for clause in include)
    if prompt["tag"] != "position":
        return clauses
    relation, shape, other = include[1]["position"][0], include[1]["class"], include[0]["class"]
    swapped = {"right of": "left of", "below": "above"}
    if relation in swapped:
        relation, shape, other = swapped[relation], other, shape
    return frozenset([(shape, relation, other)])


@pytest.mark.parametrize("world", WORLDS)
def test_the_split_is_complete_and_no_picture_is_on_both_sides(world: str):
    train, held_out = split(WORLDS[world])
    texts = Counter(prompt["prompt"] for prompt in train + held_out)
    assert texts == Counter(prompt["prompt"] for prompt in ALL[world])
    for task in TASKS:
        seen = {picture(prompt) for prompt in train if prompt["tag"] == task}
        unseen = {picture(prompt) for prompt in held_out if prompt["tag"] == task}
        assert not seen & unseen
        assert unseen
        if task == "single_object":
            assert not seen
        else:
            assert 0.2 < len(unseen) / len(seen | unseen) < 0.4


def test_the_split_is_repeatable_and_follows_its_seed():
    assert split(WORLDS["small"]) == split(WORLDS["small"], seed=0)
    assert split(WORLDS["small"], seed=1) != split(WORLDS["small"], seed=0)


# Scenes


def official_relation(thing: Shape, other: Shape) -> set[str]:
    """GenEval's rule on bounding boxes, written out from METHOD's description of it."""

    def centre_and_size(shape: Shape) -> tuple[list[float], list[float]]:
        x0, y0, x1, y1 = shape.box
        return [(x0 + x1) / 2, (y0 + y1) / 2], [x1 - x0, y1 - y0]

    (centre, size), (other_centre, other_size) = centre_and_size(thing), centre_and_size(other)
    raw = [a - b for a, b in zip(centre, other_centre, strict=True)]
    cleared = [
        math.copysign(max(abs(offset) - 0.1 * (a + b), 0), offset)
        for offset, a, b in zip(raw, size, other_size, strict=True)
    ]
    dx, dy = (offset / math.hypot(*raw) for offset in cleared)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, true in holds.items() if true}


def shows(scene: Scene, metadata: dict[str, Any]) -> bool:
    """Whether a scene holds exactly the objects of a prompt, in its colors and its relation."""
    wanted = [(clause["class"], clause.get("color")) for clause in metadata["include"] for _ in range(clause["count"])]
    if len(wanted) != len(scene.objects):
        return False
    fits = any(
        all(
            shape == thing.shape and color in (None, thing.color)
            for (shape, color), thing in zip(wanted, order, strict=True)
        )
        for order in itertools.permutations(scene.objects)
    )
    if not fits or metadata["tag"] != "position":
        return fits
    by_shape = {thing.shape: thing for thing in scene.objects}
    clause = metadata["include"][1]
    relation, target = clause["position"]
    return relation in official_relation(by_shape[clause["class"]], by_shape[metadata["include"][target]["class"]])


@pytest.mark.parametrize("world", WORLDS)
def test_every_scene_shows_its_prompt_and_can_be_drawn(world: str):
    rng = random.Random(1)
    for prompt in some_prompts(world):
        scene = sample_scene(prompt, WORLDS[world], rng)
        assert shows(scene, prompt), prompt["prompt"]
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            assert min(x0, y0) >= 0
            assert max(x1, y1) <= scene.size
        image = render(scene)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        drawn = np.abs(image.astype(int) - scene.ground).max(axis=2) > 20
        assert drawn.any(), prompt["prompt"]


@pytest.mark.parametrize("world", WORLDS)
def test_objects_do_not_overlap(world: str):
    rng = random.Random(2)
    for prompt in some_prompts(world, 120):
        scene = sample_scene(prompt, WORLDS[world], rng)
        cover = sum(coverage(t.shape, t.cx, t.cy, t.radius, scene.size) for t in scene.objects)
        assert np.max(cover) <= 1 + 1e-6, scene


def test_a_scene_and_its_picture_follow_from_the_seed():
    world = WORLDS["full"]
    for prompt in some_prompts("full", 30):
        first = sample_scene(prompt, world, random.Random(5))
        assert first == sample_scene(prompt, world, random.Random(5))
        assert first != sample_scene(prompt, world, random.Random(6))
        assert np.array_equal(render(first), render(first))


def test_objects_are_painted_in_their_colors():
    rng = random.Random(3)
    for color, rgb in PALETTE.items():
        scene = sample_scene(
            {"tag": "colors", "include": [{"class": "square", "count": 1, "color": color}]}, WORLDS["full"], rng
        )
        [square] = scene.objects
        middle = render(scene)[round(square.cy), round(square.cx)]
        assert np.abs(middle.astype(int) - rgb).max() <= 7


def test_open_colors_are_drawn_from_the_world():
    rng = random.Random(4)
    prompt = ALL["small"][0]
    seen = {sample_scene(prompt, WORLDS["small"], rng).objects[0].color for _ in range(80)}
    assert seen == set(WORLDS["small"].colors)


def test_a_scene_without_room_is_an_error():
    crowd = {"tag": "two_object", "include": [{"class": "ring", "count": 4}]}
    narrow = WORLDS["small"].__class__("narrow", ("ring",), ("red",), 4, size=20)
    with pytest.raises(RuntimeError, match="no room for 4 objects"):
        sample_scene(crowd, narrow, random.Random(0))


# Captions that misdescribe


@pytest.mark.parametrize("world", WORLDS)
def test_a_misread_picture_does_not_show_its_prompt(world: str):
    rng = random.Random(7)
    for prompt in some_prompts(world):
        before = repr(prompt)
        wrong = misread(prompt, WORLDS[world], rng)
        assert repr(prompt) == before
        assert wrong["tag"] == prompt["tag"]
        if prompt["tag"] == "single_object":
            assert wrong["include"] == prompt["include"]
            continue
        assert wrong["include"] != prompt["include"]
        assert not shows(sample_scene(wrong, WORLDS[world], rng), prompt), (prompt["prompt"], wrong)


def test_misreading_a_relation_keeps_the_objects_and_reaches_every_other_relation():
    rng = random.Random(8)
    prompt = next(prompt for prompt in ALL["small"] if prompt["tag"] == "position")
    relation = prompt["include"][1]["position"][0]
    seen = {misread(prompt, WORLDS["small"], rng)["include"][1]["position"][0] for _ in range(60)}
    assert seen == set(RELATIONS) - {relation}


# Drawing


@pytest.mark.parametrize("shape", OUTLINES)
def test_coverage_fills_the_outlines_box(shape: str):
    cover = coverage(shape, 32.0, 32.0, 15.0, 64)
    assert cover.min() == 0
    assert cover.max() == 1
    ys, xs = np.nonzero(cover > 0.05)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert box == pytest.approx([32 + 15 * edge for edge in extent(shape)], abs=1.5)


@pytest.mark.parametrize(
    ("shape", "area", "outline"),
    [
        ("circle", math.pi, 2 * math.pi),
        ("square", 1.8**2, 4 * 1.8),
        ("triangle", 2.1 * 1.83 / 2, 2.1 + 2 * math.hypot(1.05, 1.83)),
        ("ring", math.pi * (1 - 0.55**2), 2 * math.pi * 1.55),
    ],
)
def test_coverage_has_the_areas_of_geometry(shape: str, area: float, outline: float):
    radius = 14.0
    # OpenCV paints the outline as well: half a subpixel, an eighth of a pixel, all along it.
    expected = area * radius**2 + outline * radius / 8
    assert coverage(shape, 31.3, 32.6, radius, 64).sum() == pytest.approx(expected, rel=0.01)


def test_a_ring_is_hollow_and_moves_with_its_centre():
    cover = coverage("ring", 32.0, 32.0, 15.0, 64)
    assert cover[32, 32] == 0
    np.testing.assert_allclose(coverage("ring", 37.0, 29.0, 15.0, 64), np.roll(cover, (-3, 5), (0, 1)), atol=0.02)


def test_contents_name_the_shape_and_color_that_cover_each_cell() -> None:
    world = WORLDS["small"]
    red_square = Shape("square", "red", 16.0, 16.0, 12.0, (214, 40, 44))
    white_cross = Shape("cross", "white", 48.0, 48.0, 12.0, (246, 246, 244))
    cells = contents(Scene((red_square, white_cross), 128, 64), world, 8)
    assert cells.shape == (8, 8)
    square = 1 + world.shapes.index("square") * len(world.colors) + world.colors.index("red")
    cross = 1 + world.shapes.index("cross") * len(world.colors) + world.colors.index("white")
    assert set(cells[:4, :4].ravel()) == {0, square}
    assert set(cells[4:, 4:].ravel()) == {0, cross}
    assert cells[1, 1] == cells[2, 2] == square
    assert (cells[:4, 4:] == 0).all()
    assert (cells[4:, :4] == 0).all()
