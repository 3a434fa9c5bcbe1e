"""The weights that come with the package: what they are, and that they draw."""

from pathlib import Path

import pytest

import tiny_world
from reward_api import Item, Score
from reward_services.geneval.scorer import GenEvalScorer
from tiny_world.pretrain.model import MAX_SEQUENCE_LENGTH, SHIFT, TEXT_LENGTH, load
from tiny_world.prompts import WORLDS, every_prompt, single_object
from trainer.config import LoraSettings, ModelConfig
from trainer.draws import key
from trainer.models.sd3 import SD3
from trainer.rollout import sample

pytestmark = pytest.mark.unit

FOLDER = Path(tiny_world.__file__).parent / "weights" / "small"


def test_the_weights_are_small_half_precision_safetensors_with_a_card():
    files = list(FOLDER.rglob("*"))
    assert sum(file.stat().st_size for file in files) < 20 * 2**20
    assert {file.suffix for file in files if file.stat().st_size > 100_000} == {".safetensors"}
    assert "## Measured quality" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_prompt_fits_and_every_word_is_one_token():
    pipe = load(FOLDER)
    assert pipe.scheduler.config.shift == SHIFT
    for prompt in every_prompt(WORLDS["small"]):
        tokens = pipe.tokenizer(prompt["prompt"]).input_ids
        assert len(tokens) == len(prompt["prompt"].split()) + 2 <= TEXT_LENGTH


def test_the_model_draws_single_objects():
    config = ModelConfig(
        path="tiny_world:weights/small", resolution=64, max_sequence_length=MAX_SEQUENCE_LENGTH, device="cpu"
    )
    model = SD3(config, LoraSettings(rank=1))
    prompts = [single_object(shape) for shape in WORLDS["small"].shapes for _ in range(6)]
    text = model.encode([prompt["prompt"] for prompt in prompts])
    images = sample(model, text, None, [key(0, "test", index) for index in range(len(prompts))], 10, 1.0)
    outcomes = GenEvalScorer(world="small").score(
        [Item(image, prompt["prompt"], prompt) for image, prompt in zip(images, prompts, strict=True)]
    )
    right = [isinstance(outcome, Score) and outcome.details["correct"] for outcome in outcomes]
    assert sum(right) >= 0.8 * len(right)
