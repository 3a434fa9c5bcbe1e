"""open_clip's checkpoints in transformers' CLIPModel, against open_clip's network written in plain torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.random_clip import save_processor, vocabulary
from reward_api import Item
from reward_services.hpsv2.open_clip import clip_model
from reward_services.hpsv2.scorer import HpsV2Scorer, letterboxed
from reward_services.weights import WeightsError

pytestmark = pytest.mark.unit

TEXT_WIDTH, VISION_WIDTH, HEADS, CHANNELS = 32, 48, 16, 8
PATCH, SIDE, WORDS = 8, 32, len(vocabulary("tiny"))


class Block(nn.Module):
    """Pre-norm, PyTorch's own attention; the modules bear open_clip's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 3 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(3 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, VISION_WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(VISION_WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty((SIDE // PATCH) ** 2 + 1, VISION_WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(VISION_WIDTH), nn.LayerNorm(VISION_WIDTH)
        self.transformer = Transformer(VISION_WIDTH, 3)
        self.proj = nn.Parameter(torch.empty(VISION_WIDTH, CHANNELS))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.transformer(self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Vision()
        self.transformer = Transformer(TEXT_WIDTH, 2)
        self.token_embedding = nn.Embedding(WORDS, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.empty(77, TEXT_WIDTH))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.empty(TEXT_WIDTH, CHANNELS))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


@pytest.fixture(scope="module")
def original() -> OpenClip:
    model = OpenClip().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # norms and biases too: every name must be seen to matter
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def state(original: OpenClip) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in original.state_dict().items()}


def outputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, tokens = inputs()
    with torch.no_grad():
        return model.get_image_features(pixels).pooler_output, model.get_text_features(tokens).pooler_output


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and texts of several lengths after whose end open_clip pads with 0."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, WORDS - 2, (3, 77), generator=generator)
    for row, length in zip(tokens, (5, 40, 77), strict=True):
        row[0], row[length - 1] = WORDS - 2, WORDS - 1
        row[length:] = 0
    return torch.randn(3, 3, SIDE, SIDE, generator=generator), tokens


def test_the_converted_model_gives_the_same_embeddings(original: OpenClip, state: dict[str, torch.Tensor]) -> None:
    pixels, tokens = inputs()
    with torch.no_grad():
        image, text = original.visual(pixels), original.text(tokens)
    model = clip_model(state)
    got_image, got_text = outputs(model)
    torch.testing.assert_close(got_image, image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_text, text, rtol=1e-4, atol=1e-5)
    assert model.logit_scale.item() == original.logit_scale.item()


def test_every_weight_counts(state: dict[str, torch.Tensor]) -> None:
    """So that equal embeddings above prove the mapping of every name, a disturbed weight must change them."""
    before = outputs(clip_model(state))
    # A shift of all keys by one vector cancels in the softmax; whole matrices and the other biases do not.
    for name in state:
        if name == "logit_scale":
            continue
        disturbed = dict(state)
        disturbed[name] = state[name].roll(1, 0) * 1.5
        after = outputs(clip_model(disturbed))
        assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(before, after, strict=True)), name


def test_a_constant_mask_and_the_prefix_of_a_parallel_run_are_passed_over(state: dict[str, torch.Tensor]) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()} | {"module.attn_mask": torch.zeros(77, 77)}
    for got, expected in zip(outputs(clip_model(wrapped)), outputs(clip_model(state)), strict=True):
        torch.testing.assert_close(got, expected)


def test_checkpoints_that_are_none(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"no open_clip checkpoint of a ViT: it lacks token_embedding.weight"):
        clip_model({"layers.0.weight": torch.zeros(2, 2)})
    without = {name: tensor for name, tensor in state.items() if name != "transformer.resblocks.1.ln_2.bias"}
    with pytest.raises(WeightsError, match=r"lacks text_model.encoder.layers.1.layer_norm2.bias"):
        clip_model(without)
    with pytest.raises(WeightsError, match="has head, which CLIP has not"):
        clip_model(state | {"head": torch.zeros(1)})
    with pytest.raises(WeightsError, match="does not fit together"):
        clip_model(state | {"ln_final.bias": torch.zeros(3)})


def test_the_whole_image_is_seen() -> None:
    image = np.full((40, 80, 3), 200, np.uint8)
    boxed = letterboxed(image, 32)
    assert boxed.shape == (32, 32, 3)
    assert (boxed[:8] == 0).all()
    assert (boxed[24:] == 0).all()
    assert (boxed[8:24] == 200).all()
    assert letterboxed(image[:1, :1], 32).min() == 200
    assert letterboxed(np.full((1, 9000, 3), 9, np.uint8), 32).sum() == 9 * 3 * 32


def test_the_score_is_the_cosine(original: OpenClip, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state}, tmp_path / "hps.pt")
    save_processor(tmp_path / "processor", "tiny")
    scorer = HpsV2Scorer(str(tmp_path / "hps.pt"), processor=str(tmp_path / "processor"), device="cpu")
    scorer.load()
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    (outcome,) = scorer.score([Item(image, "ab")])
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None]
    pieces = vocabulary("tiny")
    tokens = torch.tensor([[WORDS - 2, pieces.index("a"), pieces.index("b</w>"), WORDS - 1]])
    with torch.no_grad():
        expected = torch.cosine_similarity(original.visual(pixels), original.text(tokens))
    assert outcome.score == pytest.approx(float(expected), abs=1e-5)
