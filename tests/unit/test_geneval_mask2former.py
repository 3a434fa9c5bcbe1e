"""The Mask2Former port against what mmdet 3.3 said (tests/mmdet/record.py), and its parts against hand-made cases."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from drawn_weights import drawn_weights

from benchmarks.random_clip import save_random_clip
from reward_api import Item, Score
from reward_services.geneval.canvas import Canvas, paint, scaled_size, unpaint
from reward_services.geneval.coco import CLASSES
from reward_services.geneval.convert import save
from reward_services.geneval.detector import Detection
from reward_services.geneval.instances import bounding_boxes, instances
from reward_services.geneval.mask2former import Mask2FormerDetector
from reward_services.geneval.scorer import GenEvalScorer
from reward_services.weights import WeightsError

pytestmark = pytest.mark.unit

RECORDING = Path(__file__).parents[1] / "data" / "mask2former_small.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(RECORDING) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def state(recorded: dict[str, Any]) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(shape) for name, shape in json.loads(str(recorded["shapes"])).items()}
    return drawn_weights(shapes, int(recorded["seed"]))


@pytest.fixture(scope="module")
def folder(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detector") / "converted"
    save(state, out)
    return out


@pytest.fixture(scope="module")
def detector(folder: Path) -> Mask2FormerDetector:
    return Mask2FormerDetector(str(folder), device="cpu")


@pytest.fixture(scope="module")
def found(detector: Mask2FormerDetector, recorded: dict[str, Any]) -> list[list[Detection]]:
    """The port's detections of the two recorded images, all 100 of each."""
    return detector.detections([recorded["image_0"], recorded["image_1"]])


@pytest.mark.parametrize("index", [0, 1])
def test_pixels_and_logits_are_mmdets(detector: Mask2FormerDetector, recorded: dict[str, Any], index: int) -> None:
    stride = int(recorded["stride"])
    canvas = paint(recorded[f"image_{index}"])
    np.testing.assert_allclose(canvas.pixels[:, ::stride, ::stride], recorded[f"pixels_{index}"], rtol=0, atol=1e-4)
    class_logits, mask_logits = detector.logits(canvas.pixels[None])
    np.testing.assert_allclose(class_logits[0], recorded[f"class_logits_{index}"], rtol=0, atol=1e-4)
    sampled = mask_logits[0, :, ::stride, ::stride]
    np.testing.assert_allclose(sampled, recorded[f"mask_logits_{index}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("index", [0, 1])
def test_detections_are_mmdets(found: list[list[Detection]], recorded: dict[str, Any], index: int) -> None:
    image = recorded[f"image_{index}"]
    ours = sorted(found[index], key=lambda detection: (detection.label, detection.score))
    labels, scores = recorded[f"labels_{index}"], recorded[f"scores_{index}"]
    masks = np.unpackbits(recorded[f"masks_{index}"]).astype(bool)[: 100 * image[..., 0].size]
    masks = masks.reshape(100, *image.shape[:2])
    order = sorted(range(100), key=lambda i: (CLASSES[labels[i]], scores[i]))
    assert [d.label for d in ours] == [CLASSES[labels[i]] for i in order]
    np.testing.assert_allclose([d.score for d in ours], scores[order], rtol=0, atol=1e-4)
    for detection, i in zip(ours, order, strict=True):
        assert (detection.mask != masks[i]).sum() <= 1, "a pixel at logit 0 may fall to either side"
        assert detection.box == pytest.approx(recorded[f"boxes_{index}"][i], abs=1 if scores[i] else 0)


def test_images_of_several_sizes_are_detected_as_alone(
    folder: Path, found: list[list[Detection]], recorded: dict[str, Any]
) -> None:
    first, second = recorded["image_0"], recorded["image_1"]
    pair = Mask2FormerDetector(str(folder), device="cpu", images_at_once=2)
    batched = pair.detections([second[::-1].copy(), first, second])
    for together, alone, image in zip(batched[1:], found, (first, second), strict=True):
        assert sorted(d.label for d in together) == sorted(d.label for d in alone)
        assert sorted(d.score for d in together) == pytest.approx(sorted(d.score for d in alone), abs=1e-4)
        assert together[0].mask.shape == image.shape[:2]
    assert sorted(d.score for d in batched[0]) != pytest.approx(sorted(d.score for d in found[1]), abs=1e-2)


def test_a_minimal_score_only_leaves_out(folder: Path, found: list[list[Detection]], recorded: dict[str, Any]) -> None:
    (few,) = Mask2FormerDetector(str(folder), device="cpu", min_score=0.3).detections([recorded["image_0"]])
    sure = [detection for detection in found[0] if detection.score > 0.3]
    assert 0 < len(few) == len(sure) < 100
    for one, other in zip(few, sure, strict=True):
        assert (one.label, one.score, one.box) == (other.label, pytest.approx(other.score), other.box)
        assert np.array_equal(one.mask, other.mask)


def test_an_image_without_any_object_has_no_detections(folder: Path, recorded: dict[str, Any]) -> None:
    """As a gray image, which the service warms up with."""
    assert Mask2FormerDetector(str(folder), device="cpu", min_score=0.999).detections([recorded["image_0"]]) == [[]]


def test_a_scorer_whose_detector_sees_nothing_warms_up_and_scores(
    state: dict[str, torch.Tensor], tmp_path: Path, recorded: dict[str, Any]
) -> None:
    blind = state["panoptic_head.cls_embed.bias"].clone()
    blind[-1] += 50.0
    save({**state, "panoptic_head.cls_embed.bias": blind}, tmp_path / "detector")
    (tmp_path / "clip").mkdir()
    save_random_clip(tmp_path / "clip", "tiny")
    places = {"model": str(tmp_path / "detector"), "colors_model": str(tmp_path / "clip")}
    scorer = GenEvalScorer(detector="mask2former", device="cpu", **places)
    scorer.load()
    scorer.warm_up()
    (outcome,) = scorer.score([Item(recorded["image_0"], "a photo of a red apple")])
    assert isinstance(outcome, Score)
    assert (outcome.score, outcome.details["detections"]) == (0.0, [])


def test_half_precision_stays_close(folder: Path, recorded: dict[str, Any]) -> None:
    """Autocast as on cuda, on a CPU: that nothing in the model refuses it."""
    half = Mask2FormerDetector(str(folder), device="cpu")
    assert half.half is False
    half.half = True
    class_logits, mask_logits = half.logits(paint(recorded["image_0"]).pixels[None])
    assert class_logits.dtype == mask_logits.dtype == torch.float32
    exact = torch.from_numpy(recorded["class_logits_0"]).softmax(-1)
    assert 1e-6 < (class_logits[0].softmax(-1) - exact).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((512, 512), (800, 800)),
        ((480, 640), (800, 1067)),  # 640 / .6 = 1066.67
        ((400, 1000), (533, 1333)),  # 400 * 1.333 = 533.2
        ((1000, 400), (1333, 533)),
        ((1600, 1600), (800, 800)),
        ((801, 533), (1202, 800)),  # 801 * 800 / 533 = 1202.25
        ((2, 16000), (1, 1333)),  # .17 would be 0
    ],
)
def test_scaled_size(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert scaled_size(*size) == scaled


def test_a_canvas_is_normalised_inside_and_zero_outside() -> None:
    image = np.full((30, 80, 3), (10, 100, 200), dtype=np.uint8)
    canvas = paint(image)
    assert (canvas.content, canvas.original, canvas.size) == ((500, 1333), (30, 80), (512, 1344))
    expected = [(10 - 123.675) / 58.395, (100 - 116.28) / 57.12, (200 - 103.53) / 57.375]
    inside = canvas.pixels[:, :500, :1333]
    torch.testing.assert_close(inside, torch.tensor(expected).view(3, 1, 1).expand_as(inside), rtol=0, atol=1e-5)
    assert canvas.pixels[:, 500:].abs().max() == canvas.pixels[:, :, 1333:].abs().max() == 0


def test_masks_find_their_way_back_through_both_sizes() -> None:
    canvas = Canvas(torch.zeros(3, 64, 96), (60, 90), (20, 30))
    coarse = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    enlarged = cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_LINEAR)[:60, :90]
    # Down to a third without smoothing, a pixel's centre falls on the centre of the middle one of three.
    np.testing.assert_allclose(unpaint(torch.from_numpy(coarse)[None], canvas)[0], enlarged[1::3, 1::3], atol=1e-5)


def test_confidence_is_class_probability_times_mean_probability_inside() -> None:
    canvas = Canvas(torch.zeros(3, 32, 32), (32, 32), (32, 32))
    classes = ("cat", "dog")
    class_logits = torch.tensor([[0.0, 2.0, 1.0], [1.0, -1.0, 0.5]])
    mask_logits = torch.full((2, 32, 32), -3.0)
    mask_logits[0, 4:10, 5:20] = 1.5
    found = {(d.label, d.box): d for d in instances(class_logits, mask_logits, canvas, classes)}
    assert set(found) == {(label, box) for label in classes for box in ((5.0, 4.0, 20.0, 10.0), (0.0, 0.0, 0.0, 0.0))}
    dog = found["dog", (5.0, 4.0, 20.0, 10.0)]
    probability = np.exp(2) / (1 + np.exp(2) + np.e)
    assert dog.score == pytest.approx(probability / (1 + np.exp(-1.5)), rel=1e-4)
    assert (dog.mask.sum(), dog.mask[4:10, 5:20].all()) == (90, True)
    assert found["cat", (0.0, 0.0, 0.0, 0.0)].score == 0.0
    assert [d.label for d in instances(class_logits, mask_logits, canvas, classes, min_score=0.3)] == ["dog"]
    assert instances(class_logits, mask_logits, canvas, classes, min_score=0.99) == []


def test_boxes_hold_all_pixels_of_a_mask() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((50, 7, 9)) < rng.choice([0.0, 0.03, 0.2], (50, 1, 1))
    for mask, box in zip(masks, bounding_boxes(torch.from_numpy(masks)).tolist(), strict=True):
        pixels = [(y, x) for y in range(7) for x in range(9) if mask[y, x]]
        rows, columns = [y for y, _ in pixels], [x for _, x in pixels]
        expected = [min(columns), min(rows), max(columns) + 1, max(rows) + 1] if pixels else [0] * 4
        assert box == expected


def test_the_classes_are_genevals() -> None:
    assert len(set(CLASSES)) == 80
    assert (CLASSES[0], CLASSES[64:67], CLASSES[79]) == (
        "person",
        ("computer mouse", "tv remote", "computer keyboard"),
        "toothbrush",
    )


def edited(folder: Path, tmp_path: Path, **settings: Any) -> str:
    """The same weights under a changed configuration."""
    config = json.loads((folder / "config.json").read_text()) | settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    return str(tmp_path)


def test_faults_of_a_model_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    cases = {
        "missing": (str(tmp_path / "absent"), "there is no directory"),
        "empty": (str(tmp_path), "convert-detector"),
        "checkpoint": (
            str(RECORDING),
            f"is a file: make a directory of it with flow-grpo convert-detector {RECORDING} OUT",
        ),
        "offline": ("facebook/mask2former-swin-small-coco-instance", "HF_HUB_OFFLINE is set"),
    }
    for source, words in cases.values():
        check_refused(source, words)
    for name in ("type", "deeper", "torn"):
        (tmp_path / name).mkdir()
    check_refused(edited(folder, tmp_path / "type", model_type="clip"), "type 'clip', not a mask2former")
    check_refused(edited(folder, tmp_path / "deeper", encoder_layers=4), "lacks")
    (tmp_path / "torn" / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "torn" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    check_refused(str(tmp_path / "torn"), "cannot be loaded as a Mask2Former")


def test_a_model_of_other_classes_is_refused(state: dict[str, torch.Tensor], folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name in ("class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"):
        weights[name] = weights[name][:8].clone()
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): f"thing {index}" for index in range(7)}
    config["label2id"] = {name: index for index, name in config["id2label"].items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_refused(str(tmp_path), "7 classes apart, not COCO's 80")


def check_refused(source: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words) as refused:
        Mask2FormerDetector(source, device="cpu").load()
    assert "\n" not in str(refused.value)
