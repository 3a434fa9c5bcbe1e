"""Flawed pictures, judged by GenEval's verdict, which knows nothing of how they were made."""

import random

import numpy as np
import pytest

from reward_api import Item, Score
from reward_services.geneval.scorer import GenEvalScorer
from reward_services.ocr.rapid import RapidReader
from tiny_world.flaws import FLAWS, clean, flawed
from tiny_world.prompts import TASKS, WORLDS, every_prompt, sign, words

pytestmark = pytest.mark.unit

WORLD = WORLDS["small"]
PROMPTS = list(every_prompt(WORLD))


def share_right(pictures, prompts) -> float:
    scorer = GenEvalScorer(world="small", mode="official")
    outcomes = scorer.score(
        [Item(picture, prompt["prompt"], prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    )
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    return sum(outcome.score for outcome in outcomes) / len(outcomes)


@pytest.fixture
def asked() -> list[dict]:
    rng = random.Random(5)
    return [rng.choice([prompt for prompt in PROMPTS if prompt["tag"] == task]) for task in TASKS for _ in range(10)]


def test_clean_pictures_show_their_prompts(asked):
    rng = random.Random(1)
    assert share_right([clean(prompt, WORLD, rng) for prompt in asked], asked) >= 0.95


@pytest.mark.parametrize(("flaw", "most"), [("mismatched", 0.15), ("misread", 0.0), ("broken", 0.3), ("doubled", 0.4)])
def test_flawed_ones_do_not(asked, flaw: str, most: float):
    rng = random.Random(2)
    if flaw == "misread":  # single objects cannot be
        asked = [prompt for prompt in asked if prompt["tag"] != "single_object"]
    assert share_right([flawed(prompt, flaw, PROMPTS, WORLD, rng) for prompt in asked], asked) <= most


def test_smeared_ones_show_the_prompt_without_edges(asked):
    def edges(pictures) -> float:
        return np.mean(
            [np.abs(np.diff(picture.astype(float), axis=axis)).max() for picture in pictures for axis in (0, 1)]
        )

    rng = random.Random(4)
    sharp = [clean(prompt, WORLD, rng) for prompt in asked]
    smeared = [flawed(prompt, "smeared", PROMPTS, WORLD, rng) for prompt in asked]
    assert edges(smeared) < 0.6 * edges(sharp)


def test_the_same_draws_give_the_same_picture(asked):
    for flaw in FLAWS:
        first, second = (flawed(asked[0], flaw, PROMPTS, WORLD, random.Random(3)) for _ in range(2))
        assert (first == second).all()


def test_flawed_signs_cannot_be_read():
    rng = random.Random(6)
    signs = [sign(word) for word in rng.sample(words(), 40)]
    reader = RapidReader()

    def read(pictures) -> float:
        texts = ["".join(line.text for line in reader.read(picture)) for picture in pictures]
        return np.mean([text == prompt["text"] for text, prompt in zip(texts, signs, strict=True)])

    assert read([clean(prompt, WORLD, rng) for prompt in signs]) >= 0.9
    for flaw, most in (("mismatched", 0.0), ("misread", 0.0), ("broken", 0.75), ("doubled", 0.75)):
        assert read([flawed(prompt, flaw, signs, WORLD, rng) for prompt in signs]) <= most, flaw
