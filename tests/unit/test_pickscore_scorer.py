"""PickScore's formula on a random tiny CLIP, against the formula written out by hand."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPModel

from benchmarks.random_clip import END, START, save_random_clip
from reward_api import Item, RewardInfo
from reward_services.clip import CLIP_H
from reward_services.pickscore.scorer import PickScoreScorer
from reward_services.scoring import info_of
from reward_services.weights import WeightsError
from tiny_world.flaws import clean
from tiny_world.prompts import WORLDS, every_prompt

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_random_clip(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def scorer(clip: Path) -> PickScoreScorer:
    scorer = PickScoreScorer(str(clip), device="cpu")
    scorer.load()
    scorer.warm_up()
    return scorer


def item(seed: int, prompt: str, side: int = 48) -> Item:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    return Item(pixels, prompt)


def test_score_is_cosine_times_the_learned_scale(clip: Path, scorer: PickScoreScorer) -> None:
    one = item(0, "a cat")
    (outcome,) = scorer.score([one])
    model = CLIPModel.from_pretrained(clip).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(images=[one.image.copy()], return_tensors="pt")["pixel_values"]
    letters = {piece: index for index, piece in enumerate(json.loads((clip / "vocab.json").read_text()))}
    tokens = [letters[piece] for piece in (START, "a</w>", "c", "a", "t</w>", END)]
    with torch.no_grad():
        pooled_image = model.vision_model(pixel_values=pixels).pooler_output
        pooled_text = model.text_model(input_ids=torch.tensor([tokens])).pooler_output
        image = model.visual_projection(pooled_image)[0]
        text = model.text_projection(pooled_text)[0]
        cosine = float(image @ text / (image.norm() * text.norm()))
        expected = cosine * float(model.logit_scale.exp())
    assert outcome.score == pytest.approx(expected, rel=1e-4)
    assert outcome.details["cosine"] == pytest.approx(cosine, rel=1e-4)
    assert outcome.details["raw"] == outcome.score
    assert outcome.details["score_26"] == pytest.approx(outcome.score / 26)


def test_each_image_meets_its_own_prompt(scorer: PickScoreScorer) -> None:
    items = [item(1, "a cat"), item(2, "a dog in a hat", side=64), item(3, "b"), item(3, "a cat")]
    together = [outcome.score for outcome in scorer.score(items)]
    alone = [scorer.score([one])[0].score for one in items]
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(set(together)) == 4


def test_long_prompts_are_cut_at_77_tokens(scorer: PickScoreScorer) -> None:
    longest = "a" * 75
    cut, whole = scorer.score([item(4, longest + "b" * 500), item(4, longest)])
    # Inside a word no piece ends it; the cut text ends in a piece without the end mark.
    assert cut.score != whole.score
    again = scorer.score([item(4, longest + "b" * 900)])[0]
    assert again.score == pytest.approx(cut.score, rel=1e-5)


def test_a_missing_model_is_told_when_loading(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no-model"):
        PickScoreScorer(str(tmp_path / "no-model")).load()


def test_a_precision_that_is_none() -> None:
    with pytest.raises(ValueError, match="dtype='int8': must be one of float32, float16, bfloat16"):
        PickScoreScorer(dtype="int8")


def test_information(clip: Path, scorer: PickScoreScorer) -> None:
    info = info_of(scorer)
    assert isinstance(info, RewardInfo)
    assert (info.name, info.version, info.range) == ("pickscore", clip.name, (None, None))
    assert not info.batch_invariant
    published = PickScoreScorer("yuvalkirstain/PickScore_v1", device="cpu")
    assert published.fallback_processor == CLIP_H
    assert info_of(published).version == "PickScore_v1"
    half = PickScoreScorer("yuvalkirstain/PickScore_v1", device="cpu", dtype="float16")
    assert half.version == "PickScore_v1+float16"


def test_the_default_prefers_pictures_of_what_was_asked() -> None:
    scorer = PickScoreScorer(device="cpu")
    scorer.load()
    world = WORLDS["small"]
    prompts = [prompt for prompt in every_prompt(world) if prompt["tag"] == "colors"]
    rng = random.Random(5)
    pictures = [clean(prompt, world, rng) for prompt in prompts]
    texts = [prompt["prompt"] for prompt in prompts]
    right = scorer.score([Item(picture, text) for picture, text in zip(pictures, texts, strict=True)])
    wrong = scorer.score([Item(picture, text) for picture, text in zip(pictures, texts[1:] + texts[:1], strict=True)])
    better = [good.score > bad.score for good, bad in zip(right, wrong, strict=True)]
    assert sum(better) >= 0.9 * len(better)
