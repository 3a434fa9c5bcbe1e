"""CLIP names colors: the formula on a random tiny CLIP, crops and squares by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from benchmarks.random_clip import save_random_clip
from reward_services.geneval.clip_colors import ClipColors, central_square, cut_out
from reward_services.geneval.detector import Detection

pytestmark = pytest.mark.unit

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_random_clip(folder, "tiny")
    return folder


@pytest.fixture
def classifier(folder: Path) -> ClipColors:
    return ClipColors(str(folder), device="cpu", crops_at_once=4)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def thing(image: np.ndarray, box: tuple[int, int, int, int], label: str) -> Detection:
    """A detection whose mask is an ellipse in its box."""
    left, top, right, bottom = box
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    inside = ((2 * x - left - right) / (right - left)) ** 2 + ((2 * y - top - bottom) / (bottom - top)) ** 2 < 1
    return Detection(label, 0.9, tuple(map(float, box)), inside)


def objects() -> list[tuple[np.ndarray, Detection]]:
    boxes = [(4, 6, 40, 42), (10, 0, 42, 32), (0, 20, 24, 44), (20, 8, 60, 48), (2, 2, 38, 38), (30, 10, 58, 38)]
    labels = ("hot dog", "cat", "cat", "tv", "cat", "hot dog")
    found = []
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        image = picture(48, 60, seed=index // 2)
        found.append((image, thing(image, box, label)))
    return found


def reference(folder: Path, image: np.ndarray, detection: Detection) -> np.ndarray:
    """Cosines with the ten colors as GenEval takes them: composite in PIL, crop, one forward pass a text."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = CLIPTokenizer.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    whole = Image.fromarray(image)
    blank = Image.new("RGB", whole.size, color="#999")
    crop = Image.composite(whole, blank, Image.fromarray(detection.mask)).crop(detection.box)
    cosines = []
    with torch.inference_mode():
        seen = model.get_image_features(**processor(images=[crop], return_tensors="pt")).pooler_output[0]
        for color in COLORS:
            called = []
            for text in (
                f"a photo of a {color} {detection.label}",
                f"a photo of a {color}-colored {detection.label}",
                f"a photo of a {color} object",
            ):
                embedding = model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
                called.append(embedding / embedding.norm())
            mean = torch.stack(called).mean(0)
            cosines.append(float(seen @ mean / (seen.norm() * mean.norm())))
    return np.array(cosines)


def test_colors_are_the_nearest_by_clip(folder: Path, classifier: ClipColors) -> None:
    named = classifier.colors(objects())
    expected = [COLORS[int(reference(folder, *one).argmax())] for one in objects()]
    assert named == expected
    assert len(set(named)) > 1, "a constant would pass"
    assert classifier.names == COLORS
    assert classifier.colors([]) == []


def test_the_directions_of_colors(folder: Path, classifier: ClipColors) -> None:
    image, detection = objects()[3]
    classifier.colors([(image, detection)])
    directions = classifier._color_KD["tv"]
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(10))
    assert classifier._clip is not None
    crop = central_square(cut_out(image, detection), 32)
    cosines = (classifier._clip.image_embeddings([crop]) @ directions.T)[0]
    np.testing.assert_allclose(cosines, reference(folder, image, detection), atol=1e-5)


def test_texts_are_embedded_once_a_class_and_crops_in_batches(
    classifier: ClipColors, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.load()
    clip = classifier._clip
    assert clip is not None
    texts: list[list[str]] = []
    batches: list[int] = []
    embed_texts, embed_images = type(clip).text_embeddings, type(clip).image_embeddings
    monkeypatch.setattr(type(clip), "text_embeddings", lambda c, t: texts.append(list(t)) or embed_texts(c, t))
    monkeypatch.setattr(type(clip), "image_embeddings", lambda c, i: batches.append(len(i)) or embed_images(c, i))
    classifier.colors(objects())
    classifier.colors(objects()[:1])
    assert batches == [4, 2, 1]
    assert [group[0] for group in texts] == [f"a photo of a red {label}" for label in ("hot dog", "cat", "tv")]
    assert {len(group) for group in texts} == {30}


def test_a_crop_is_gray_outside_the_mask() -> None:
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    mask[2, 3] = False
    crop = cut_out(image, Detection("cat", 0.9, (2.0, 1.0, 5.0, 3.0), mask))
    assert crop.shape == (2, 3, 3)
    assert (crop[1, 1] == 0x99).all()
    expected = image[1:3, 2:5].copy()
    expected[1, 1] = 153
    assert np.array_equal(crop, expected)
    empty = Detection("cat", 0.0, (0.0, 0.0, 0.0, 0.0), np.zeros((5, 6), dtype=bool))
    assert (cut_out(image, empty) == 153).all()


@pytest.mark.parametrize("size", [(50, 50), (40, 61), (61, 40), (17, 250), (200, 33), (9, 9)])
def test_a_square_is_what_resize_and_central_crop_give(size: tuple[int, int]) -> None:
    """torchvision's way: the long side cut to whole pixels, offsets rounded half to even."""
    height, width = size
    image, side = picture(height, width, seed=3), 32
    scaled = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = (round((length - side) / 2.0) for length in scaled)
    whole = Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC)
    expected = np.asarray(whole)[top : top + side, left : left + side]
    assert np.array_equal(central_square(image, side), expected)


def test_a_hair_of_an_object_costs_no_more_than_another() -> None:
    hair = np.zeros((2, 100_000, 3), dtype=np.uint8)
    hair[:, 49_900:50_100] = 200
    assert (central_square(hair, 224) == 200).all()
