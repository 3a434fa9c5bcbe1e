"""CLIPScore and the aesthetic predictor on a random tiny CLIP, against their formulas written out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.random_clip import save_random_clip
from reward_api import Item
from reward_services.aesthetic.scorer import AestheticScorer
from reward_services.clip import Clip, load_clip
from reward_services.clipscore.scorer import ClipScoreScorer
from reward_services.scoring import info_of
from reward_services.weights import WeightsError

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    save_random_clip(folder, "tiny")
    return str(folder)


@pytest.fixture(scope="module")
def clip(folder: str) -> Clip:
    return load_clip(folder, device="cpu")


def items(count: int) -> list[Item]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)
    return [Item(image, "abcdefghijk"[: n + 1]) for n, image in enumerate(pixels)]


@pytest.mark.parametrize(("convention", "weight"), [("hessel", 2.5), ("torchmetrics", 100.0)])
def test_clipscore_clips_the_cosine_at_0(folder: str, clip: Clip, convention: str, weight: float) -> None:
    batch = items(10)
    cosines = []
    for item in batch:
        image, text = clip.image_embeddings([item.image])[0], clip.text_embeddings([item.prompt])[0]
        cosines.append(sum(float(a) * float(b) for a, b in zip(image, text, strict=True)))
    assert min(cosines) < 0 < max(cosines), "the case must show both sides"
    scorer = ClipScoreScorer(folder, device="cpu", convention=convention)
    outcomes = scorer.score(batch)
    assert [outcome.score for outcome in outcomes] == pytest.approx([weight * max(c, 0) for c in cosines], abs=1e-4)
    assert [outcome.details["cosine"] for outcome in outcomes] == pytest.approx(cosines, abs=1e-5)
    assert info_of(scorer).range == (0.0, weight)


def test_an_unknown_convention() -> None:
    with pytest.raises(ValueError, match="convention='clip': must be one of hessel, torchmetrics"):
        ClipScoreScorer(convention="clip")


def head(channels: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A predictor with the names and shapes of the published file, random."""
    sizes = (channels, 1024, 128, 64, 16, 1)
    state = {}
    for index, before, after in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        state[f"layers.{index}.weight"] = torch.randn(after, before, generator=generator) / before**0.5
        state[f"layers.{index}.bias"] = torch.randn(after, generator=generator)
    return state


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_the_rating_is_an_affine_function_of_the_embedding(
    folder: str, clip: Clip, tmp_path: Path, suffix: str
) -> None:
    state = head(8, torch.Generator().manual_seed(0))
    path = tmp_path / f"head.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    scorer = AestheticScorer(folder, device="cpu", weights=str(path))
    scorer.load()
    scorer.warm_up()
    batch = items(3)
    # In use the dropouts are gone, and the layers are one matrix: in float64 and in another order of products.
    matrix, offset = torch.eye(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    for index in (0, 2, 4, 6, 7):
        weight, bias = state[f"layers.{index}.weight"].double(), state[f"layers.{index}.bias"].double()
        matrix, offset = weight @ matrix, weight @ offset + bias
    expected = [float((matrix @ clip.image_embeddings([item.image])[0].double() + offset).squeeze()) for item in batch]
    assert [outcome.score for outcome in scorer.score(batch)] == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == 3


def test_a_head_of_another_clip_is_refused(folder: str, tmp_path: Path) -> None:
    torch.save(head(768, torch.Generator()), tmp_path / "head.pth")
    with pytest.raises(WeightsError, match=r"takes 768 channels, but .* gives 8"):
        AestheticScorer(folder, weights=str(tmp_path / "head.pth")).load()


def test_a_file_that_is_no_head(folder: str, tmp_path: Path) -> None:
    state = head(8, torch.Generator())
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({name: value for name, value in state.items() if ".7." not in name}, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match=r"other.pth is no aesthetic predictor: it has no matrix layers.0.weight"):
        AestheticScorer(folder, weights=str(tmp_path / "other.pth")).load()
    with pytest.raises(WeightsError, match=r"short.pth is no aesthetic predictor: .*7.weight"):
        AestheticScorer(folder, weights=str(tmp_path / "short.pth")).load()
