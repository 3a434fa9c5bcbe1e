"""The shapes detector and the palette colors on rendered pictures."""

import math
import random

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reward_services.geneval.colors import PaletteColors
from reward_services.geneval.shapes import ShapesDetector, confidence
from tiny_world.prompts import WORLDS, every_prompt
from tiny_world.scenes import render, sample_scene
from tiny_world.shapes import OUTLINES, PALETTE, coverage

pytestmark = pytest.mark.unit

Picture = NDArray[np.uint8]
DETECTOR = ShapesDetector()
COLORS = PaletteColors()


def painted(*things: tuple[NDArray[np.float32], str], ground: int = 128) -> Picture:
    canvas = np.full((64, 64, 3), float(ground), dtype=np.float32)
    for opacity, color in things:
        canvas += opacity[..., None] * (np.array(PALETTE[color], dtype=np.float32) - canvas)
    return canvas.round().astype(np.uint8)


def decoded(picture: Picture, seed: int, blur: float = 0.6, noise: float = 5.0) -> Picture:
    """The picture as an autoencoder of 31 to 33 dB gives it back."""
    soft = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), blur)
    rough = soft + np.random.default_rng(seed).normal(0, noise, picture.shape)
    return np.asarray(np.clip(np.round(rough), 0, 255), dtype=np.uint8)


def found(picture: Picture, least: float = 0.9) -> list[tuple[str, str]]:
    sure = [d for d in DETECTOR.detections([picture])[0] if d.score > least]
    return sorted(zip((d.label for d in sure), COLORS.colors([(picture, thing) for thing in sure]), strict=True))


@pytest.mark.parametrize("shape", OUTLINES)
@pytest.mark.parametrize("radius", [7.0, 10.3, 15.0])
def test_one_shape_of_every_color(shape: str, radius: float) -> None:
    for index, color in enumerate(PALETTE):
        picture = painted((coverage(shape, 30.2, 33.7, radius, 64), color), ground=120 + 2 * index)
        assert found(picture) == [(shape, color)]
        assert found(decoded(picture, index), least=0.3) == [(shape, color)]


def test_boxes_and_masks_are_those_of_the_scene() -> None:
    world, rng = WORLDS["full"], random.Random(3)
    for prompt in rng.sample(list(every_prompt(world)), 25):
        scene = sample_scene(prompt, world, rng)
        detections = DETECTOR.detections([render(scene)])[0]
        assert len(detections) == len(scene.objects)
        for thing in scene.objects:
            drawn = coverage(thing.shape, thing.cx, thing.cy, thing.radius, 64) > 0.5
            best = max(detections, key=lambda d: int((d.mask & drawn).sum()))
            assert np.abs(np.array(best.box) - thing.box).max() < 1.0
            assert (best.mask & drawn).sum() / (best.mask | drawn).sum() > 0.9


@pytest.mark.parametrize("gap", [-0.5, 0.0, 1.0])
def test_touching_shapes_of_two_colors_are_two_objects(gap: float) -> None:
    for first, second in (
        ("red", "blue"),
        ("white", "pink"),
        ("brown", "red"),
        ("orange", "yellow"),
        ("black", "brown"),
    ):
        disk = coverage("circle", 20.0, 32.0, 10.0, 64)
        square = coverage("square", 39.0 + gap, 34.0, 10.0, 64)
        assert found(painted((disk, first), (square, second))) == [("circle", first), ("square", second)]


def test_merged_shapes_of_one_color_are_not_trusted() -> None:
    for shape in OUTLINES:
        one, other = coverage(shape, 23.0, 32.0, 9.0, 64), coverage(shape, 36.0, 34.0, 9.0, 64)
        assert found(painted((one, "green"), (other, "green")), least=0.3) == []


@pytest.mark.parametrize("shape", ["circle", "square", "star", "heart", "cross", "ring", "moon"])
def test_half_a_shape_is_none(shape: str) -> None:
    for cut in (np.s_[:32, :], np.s_[:, :32], np.s_[32:, :], np.s_[:, 32:]):
        opacity = coverage(shape, 32.0, 32.0, 11.0, 64)
        opacity[cut] = 0
        assert (shape, "red") not in found(painted((opacity, "red")), least=0.3)


def test_half_red_half_blue_is_no_circle() -> None:
    left, right = coverage("circle", 32.0, 32.0, 11.0, 64), coverage("circle", 32.0, 32.0, 11.0, 64)
    left[:, 32:], right[:, :32] = 0, 0
    assert found(painted((left, "red"), (right, "blue")), least=0.3) == []


@pytest.mark.parametrize(("stretch", "trusted"), [(1.0, True), (1.3, False), (1.6, False)])
def test_an_ellipse_is_no_circle(stretch: float, trusted: bool) -> None:
    canvas = np.zeros((256, 256), dtype=np.uint8)
    cv2.ellipse(canvas, (128, 128), (round(40 * stretch), 40), 0, 0, 360, 255, -1)
    opacity = cv2.resize(canvas, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    assert (found(painted((opacity, "yellow"))) != []) is trusted


@pytest.mark.parametrize("size", [48, 96, 512])
def test_any_size(size: int) -> None:
    large = coverage("star", 0.4 * size, 0.5 * size, 0.2 * size, size)[..., None]
    picture = (128 + large * (np.array(PALETTE["purple"], dtype=np.float32) - 128)).round().astype(np.uint8)
    (star,) = DETECTOR.detections([picture])[0]
    assert star.label == "star"
    assert star.score > 0.9
    assert star.mask.shape == (size, size)
    assert (star.box[0] + star.box[2]) / 2 == pytest.approx(0.4 * size, abs=0.02 * size)


def test_a_wide_picture() -> None:
    picture = np.full((40, 80, 3), 128, dtype=np.uint8)
    cv2.rectangle(picture, (50, 10), (69, 29), PALETTE["green"], -1)
    (square,) = DETECTOR.detections([picture])[0]
    assert (square.label, square.mask.shape) == ("square", (40, 80))
    assert square.box == pytest.approx((50, 10, 70, 30), abs=1.0)


def test_pictures_without_objects() -> None:
    rng = np.random.default_rng(0)
    pictures = [np.full((64, 64, 3), level, dtype=np.uint8) for level in (0, 120, 128, 136, 255)]
    pictures += [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), np.zeros((1, 1, 3), dtype=np.uint8)]
    pictures.append(decoded(np.full((64, 64, 3), 128, dtype=np.uint8), 1, noise=8))
    assert [d for group in DETECTOR.detections(pictures) for d in group if d.score > 0.3] == []


def test_smooth_noise_holds_nothing_countable() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        field = cv2.GaussianBlur(rng.normal(0, 1, (64, 64, 3)), (0, 0), 4)
        picture = cv2.normalize(field, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        assert found(picture) == []


def test_a_world_narrows_classes_and_colors() -> None:
    small = WORLDS["small"]
    picture = painted((coverage("heart", 32.0, 32.0, 10.0, 64), "orange"))
    (thing,) = ShapesDetector(small.shapes, small.colors).detections([picture])[0]
    assert thing.label in small.shapes
    assert thing.score < 0.9
    assert PaletteColors(small.colors).colors([(picture, thing)])[0] in small.colors


def test_detections_of_an_image_do_not_depend_on_its_batch() -> None:
    world, rng = WORLDS["full"], random.Random(5)
    pictures = [render(sample_scene(p, world, rng)) for p in rng.sample(list(every_prompt(world)), 6)]
    together = DETECTOR.detections(pictures)
    for picture, group in zip(pictures, together, strict=True):
        (alone,) = DETECTOR.detections([picture])
        assert [(d.label, d.score, d.box) for d in alone] == [(d.label, d.score, d.box) for d in group]


def test_confidence_is_calibrated() -> None:
    assert confidence(0.0) > 0.99
    assert confidence(0.042) == pytest.approx(0.9, abs=0.005)
    assert confidence(0.07) == pytest.approx(0.3, abs=0.01)
    assert math.isclose(confidence(2.0), 0.0, abs_tol=1e-12)
