from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from trainer.diversity import ImageEmbedder, diversity
from trainer.models.sd3 import ModelError

pytestmark = pytest.mark.unit


def test_diversity_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(7, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = diversity(vectors, ["a", "b", "a", "c", "a", "b", "a"])
    rows = [0, 2, 4, 6]
    distances = [1 - vectors[i] @ vectors[j] for i in rows for j in rows if i < j]
    assert found == {"a": pytest.approx(np.mean(distances)), "b": pytest.approx(1 - vectors[1] @ vectors[5])}


def test_equal_images_have_none():
    vectors = np.tile(np.float32([0.6, 0.8]), (3, 1))
    assert diversity(vectors, ["a"] * 3) == {"a": pytest.approx(0.0, abs=1e-6)}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layers, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_embeddings_are_the_image_half_of_the_clip(clip_folder: Path):
    images = list(np.random.default_rng(0).integers(0, 256, (70, 48, 48, 3), np.uint8))
    found = ImageEmbedder(str(clip_folder), torch.device("cpu")).embed(images)
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(images=images[-3:], return_tensors="pt")["pixel_values"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        wanted = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    wanted /= wanted.norm(dim=-1, keepdim=True)
    assert found.shape == (70, 16)
    np.testing.assert_allclose(found[-3:], wanted.numpy(), atol=1e-5)


def test_a_folder_that_is_no_clip_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"embedder.*nothing_here"):
        ImageEmbedder(str(tmp_path / "nothing_here"), torch.device("cpu"))
