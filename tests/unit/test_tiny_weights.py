"""The weights that come with the package: what they are, and that they draw."""

from pathlib import Path
from typing import Any

import pytest

import tiny_world
from benchmarks.single_letters import every_drawing, recognised
from reward_api import Item, Score
from reward_services.geneval.scorer import GenEvalScorer
from tiny_world.letters import LETTERS
from tiny_world.pretrain.model import MAX_SEQUENCE_LENGTH, SHIFT, TEXT_LENGTH, load
from tiny_world.prompts import WORLDS, every_prompt, sign, single_object, words
from trainer.config import LoraSettings, ModelConfig
from trainer.draws import key
from trainer.models.sd3 import SD3
from trainer.rollout import sample

pytestmark = pytest.mark.unit

WEIGHTS = Path(tiny_world.__file__).parent / "weights"
PIPELINES = ("small", "signs")


@pytest.mark.parametrize("name", PIPELINES)
def test_the_weights_are_small_half_precision_safetensors_with_a_card(name: str):
    folder = WEIGHTS / name
    files = list(folder.rglob("*"))
    assert sum(file.stat().st_size for file in files) < 10 * 2**20
    assert {file.suffix for file in files if file.stat().st_size > 100_000} == {".safetensors"}
    assert "## Measured quality" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PIPELINES)
def test_every_prompt_fits_and_every_word_is_one_token(name: str):
    pipe = load(WEIGHTS / name)
    assert pipe.scheduler.config.shift == SHIFT
    for prompt in every_prompt(WORLDS["small"]):
        tokens = pipe.tokenizer(prompt["prompt"]).input_ids
        assert len(tokens) == len(prompt["prompt"].split()) + 2 <= TEXT_LENGTH


def test_of_a_sign_every_letter_is_one_token():
    pipe = load(WEIGHTS / "signs")
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        for text in (*LETTERS, *words()):
            assert len(tokenizer(sign(text)["prompt"]).input_ids) == len(text) + 8 <= TEXT_LENGTH, text


def drawn(name: str, prompts: list[dict[str, Any]]) -> list[Item]:
    """A picture of each prompt by these weights, with the prompt as its metadata."""
    config = ModelConfig(
        path=f"tiny_world:weights/{name}", resolution=64, max_sequence_length=MAX_SEQUENCE_LENGTH, device="cpu"
    )
    model = SD3(config, LoraSettings(rank=1))
    text = model.encode([prompt["prompt"] for prompt in prompts])
    images = sample(model, text, None, [key(0, "test", index) for index in range(len(prompts))], 10, 1.0, "ab2")
    return [Item(image, prompt["prompt"], prompt) for image, prompt in zip(images, prompts, strict=True)]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_model_draws_single_objects(name: str):
    items = drawn(name, [single_object(shape) for shape in WORLDS["small"].shapes for _ in range(6)])
    outcomes = GenEvalScorer(world="small").score(items)
    right = [isinstance(outcome, Score) and outcome.details["correct"] for outcome in outcomes]
    assert sum(right) >= 0.8 * len(right)


def test_most_single_letters_are_drawn_right():
    letters = [letter for letter in LETTERS for _ in range(2)]
    drawings = every_drawing()
    pictures = [item.image for item in drawn("signs", [sign(letter) for letter in letters])]
    right = sum(recognised(picture, drawings) == letter for picture, letter in zip(pictures, letters, strict=True))
    assert right >= 0.65 * len(letters)
