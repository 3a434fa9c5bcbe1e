"""PickScore's formula on a random tiny CLIP, against the formula written out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from reward_api import Item, RewardInfo
from reward_services.pickscore.scorer import PickScoreScorer
from reward_services.scoring import info_of

pytestmark = pytest.mark.unit

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,\"'"
START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random CLIPModel of some thousand weights, its tokenizer and image processor."""
    folder = tmp_path_factory.mktemp("clip")
    pieces = [letter + ending for ending in ("", "</w>") for letter in LETTERS] + [START, END]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": START, "unk_token": END}))
    end = len(pieces) - 1
    text = {
        "vocab_size": len(pieces),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "eos_token_id": end,
        "bos_token_id": end - 1,
        "pad_token_id": end,
    }
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(clip: Path) -> PickScoreScorer:
    scorer = PickScoreScorer(str(clip), device="cpu")
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
    items = [item(1, "a cat"), item(2, "a dog in a hat", side=64), item(3, "b")]
    together = [outcome.score for outcome in scorer.score(items)]
    alone = [scorer.score([one])[0].score for one in items]
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(set(together)) == 3


def test_long_prompts_are_cut_at_77_tokens(scorer: PickScoreScorer) -> None:
    longest = "a" * 75
    cut, whole = scorer.score([item(4, longest + "b" * 500), item(4, longest)])
    # Inside a word no piece ends it; the cut text ends in a piece without the end mark.
    assert cut.score != whole.score
    again = scorer.score([item(4, longest + "b" * 900)])[0]
    assert again.score == pytest.approx(cut.score, rel=1e-5)


def test_a_missing_model_is_told_at_warm_up(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-model"):
        PickScoreScorer(str(tmp_path / "no-model")).warm_up()


def test_information(clip: Path, scorer: PickScoreScorer) -> None:
    info = info_of(scorer)
    assert isinstance(info, RewardInfo)
    assert (info.name, info.version, info.range) == ("pickscore", clip.name, (None, None))
    assert not info.batch_invariant
