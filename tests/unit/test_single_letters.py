"""The judge of single letters recognises rendered ones, and nothing where there is none."""

import random
from collections import Counter

import numpy as np
import pytest

from benchmarks.single_letters import WORLD, correlation, every_drawing, recognised
from tiny_world.flaws import clean
from tiny_world.letters import FONTS, LETTERS
from tiny_world.prompts import sign
from tiny_world.scenes import render, sample_scene

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def drawings():
    return every_drawing()


def test_every_letter_is_drawn_once_in_each_font(drawings):
    assert Counter(letter for letter, _ in drawings) == dict.fromkeys(LETTERS, len(FONTS))


def test_rendered_letters_are_recognised(drawings):
    rng = random.Random(5)
    for letter in LETTERS:
        assert recognised(clean(sign(letter), WORLD, rng), drawings) == letter


@pytest.mark.parametrize("picture", [np.full((64, 64, 3), 120, np.uint8), np.eye(64, dtype=np.uint8)[..., None] * 255])
def test_what_is_no_letter_is_recognised_as_none(picture, drawings):
    assert recognised(np.broadcast_to(picture, (64, 64, 3)), drawings) == ""


def test_correlation_is_pearsons_over_the_whole_picture(drawings):
    _, alpha = drawings[0]
    scene = sample_scene(sign("R"), WORLD, random.Random(1))
    ink = np.linalg.norm(render(scene).astype(np.float32) - scene.ground, axis=-1).astype(np.float32)
    rows, columns = (64 - side + 1 for side in alpha.shape)
    best = 0.0
    for top in range(rows):
        for left in range(columns):
            frame = np.zeros((64, 64))
            frame[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
            best = max(best, float((frame * ink).sum()))
            if (frame * ink).sum() == best:
                placed = frame
    assert correlation(ink, alpha) == pytest.approx(np.corrcoef(placed.ravel(), ink.ravel())[0, 1], rel=1e-4)
