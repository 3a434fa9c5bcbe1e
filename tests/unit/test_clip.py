"""What CLIP rewards share, on a random tiny CLIP: embeddings, precision, processors, faults of loading."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

import tiny_world
from benchmarks.random_clip import save_processor, save_random_clip
from reward_services.clip import Clip, load_clip, load_processor
from reward_services.weights import WeightsError, fetch_file, read_tensors

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_random_clip(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(str(folder), device="cpu")


@pytest.fixture
def bare(folder: Path, tmp_path: Path) -> Path:
    """The model without its processor."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    return tmp_path


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    return pixels


def test_embeddings_have_length_one_and_float32(clip: Clip) -> None:
    for embeddings in (clip.image_embeddings([picture(48, 40)] * 2), clip.text_embeddings(["a cat", "a"])):
        assert embeddings.shape == (2, 8)
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))


def test_weights_inside_the_tiny_world_are_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_world, "__file__", str(folder.parent / "__init__.py"))
    assert load_clip(f"tiny_world:{folder.name}", device="cpu").image_size == load_clip(str(folder)).image_size
    with pytest.raises(WeightsError, match=r"there is no directory .*/nowhere"):
        load_clip("tiny_world:nowhere")


def test_texts_beside_longer_or_equal_ones_are_embedded_as_alone(clip: Clip) -> None:
    texts = ["a cat", "a much longer text about a cat", "a cat", "b"]
    alone = torch.cat([clip.text_embeddings([text]) for text in texts])
    torch.testing.assert_close(clip.text_embeddings(texts), alone, rtol=1e-5, atol=1e-6)


def test_an_image_is_cropped_to_its_centre(clip: Clip) -> None:
    image = picture(32, 64)
    torch.testing.assert_close(clip.image_embeddings([image]), clip.image_embeddings([image[:, 16:48]]))


def as_processed(clip: Clip, folder: Path, image: np.ndarray) -> torch.Tensor:
    """The embedding by way of transformers' processor alone."""
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=[image.copy()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return torch.nn.functional.normalize(clip.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


@pytest.mark.parametrize("shape", [(40, 400), (333, 41), (20, 20)])
def test_an_image_is_seen_as_the_processor_shows_it(clip: Clip, folder: Path, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    torch.testing.assert_close(clip.image_embeddings([image]), as_processed(clip, folder, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_a_very_long_image_loses_only_what_the_processor_crops_off(clip: Clip, folder: Path, turned: bool) -> None:
    waves = 127 + 120 * np.sin(np.arange(900) / 5)
    image = np.ascontiguousarray(np.broadcast_to(waves[None, :, None], (20, 900, 3)).astype(np.uint8))
    image = image.swapaxes(0, 1) if turned else image
    got, expected = clip.image_embeddings([image]), as_processed(clip, folder, image)
    assert float((got * expected).sum()) > 0.999


def test_a_thread_of_pixels_costs_little(clip: Clip) -> None:
    # Enlarged whole it would take 32 x 48,000,000 pixels.
    assert clip.image_embeddings([picture(1, 1_500_000)]).isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 3e-2)])
def test_half_precision_keeps_logits_in_float32(folder: Path, clip: Clip, dtype: str, tolerance: float) -> None:
    half = load_clip(str(folder), device="cpu", dtype=dtype)
    assert str(half.model.dtype) == f"torch.{dtype}"
    assert half.scale == clip.scale
    cosine = half.cosines([picture(48, 48)], ["a cat"])
    assert cosine.dtype == torch.float32
    torch.testing.assert_close(cosine, clip.cosines([picture(48, 48)], ["a cat"]), rtol=0, atol=tolerance)


def test_a_model_without_processor_takes_the_fallback(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("processor")
    save_processor(other, "tiny")
    assert load_clip(str(bare), device="cpu", fallback=str(other)).text_embeddings(["a"]).shape == (1, 8)
    with pytest.raises(WeightsError, match="no tokenizer or image processor: name one with --option processor"):
        load_clip(str(bare), device="cpu")


def test_a_processor_out_of_reach_is_one_that_is_lacking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tokenizer, _ = load_processor("nobody/nothing", fallback=str(folder))
    assert tokenizer("a")["input_ids"] == [80, 40, 81]
    with pytest.raises(WeightsError, match="nobody/nothing is neither a directory here nor, with preprocessor_config"):
        load_processor("nobody/nothing")


def test_a_named_processor_replaces_the_models_own(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no directory .*nowhere"):
        load_clip(str(folder), device="cpu", processor=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/no/such/place", "there is no directory /no/such/place"),
        ("clip", "there is no directory clip"),
        ("nobody/nothing", "nobody/nothing is neither a directory here nor, with config.json, in the hub's cache, and"),
    ],
)
def test_a_source_that_is_nowhere(source: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=words) as caught:
        load_clip(source, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_file_is_no_directory(folder: Path) -> None:
    with pytest.raises(WeightsError, match="is a file: give the directory that holds it"):
        load_clip(str(folder / "config.json"), device="cpu")


def test_a_directory_that_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no config.json, not a CLIPModel"):
        load_clip(str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="holds a model of type 'bert', not a CLIPModel"):
        load_clip(str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(WeightsError, match=r"config.json is no JSON object"):
        load_clip(str(tmp_path), device="cpu")


def test_weights_that_are_absent_torn_or_incomplete(bare: Path, folder: Path) -> None:
    whole = bare / "model.safetensors"
    weights = load_file(whole)
    save_file({name: weight for name, weight in weights.items() if "fc2" not in name}, whole, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 8 weights of its CLIPModel, first .*fc2"):
        load_clip(str(bare), processor=str(folder), device="cpu")
    whole.write_bytes(b"torn")
    with pytest.raises(WeightsError, match="cannot be loaded as a CLIPModel") as caught:
        load_clip(str(bare), processor=str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    whole.unlink()
    with pytest.raises(WeightsError, match="cannot be loaded as a CLIPModel"):
        load_clip(str(bare), processor=str(folder), device="cpu")


class Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_checkpoint_is_read_without_running_anything(tmp_path: Path) -> None:
    torch.save({"a": Opens(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil.pth cannot be read as weights") as caught:
        read_tensors(tmp_path / "evil.pth")
    assert "weights_only" not in str(caught.value), "no advice to run it"
    assert not (tmp_path / "ran").exists()


def test_tensors_of_either_format(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save_file({"a": weight}, tmp_path / "a.safetensors")
    torch.save({"state_dict": {"a": weight}, "epoch": 3}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        torch.testing.assert_close(read_tensors(tmp_path / name), {"a": weight})
    torch.save({"a": 1}, tmp_path / "b.pt")
    with pytest.raises(WeightsError, match=r"b.pt holds no table of tensors"):
        read_tensors(tmp_path / "b.pt")


def test_a_file_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"there is no file /no/such.pth"):
        fetch_file("/no/such.pth")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set: download it where there is a network"):
        fetch_file("nobody/nothing/weights.pth")
