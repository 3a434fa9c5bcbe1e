"""GenEval's detectors and color classifiers by option, and a whole verdict over COCO's classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.random_clip import save_random_clip
from reward_api import ErrorCode, Item, ItemError, Score
from reward_services.geneval.backends import make_colors
from reward_services.geneval.detector import Detection, Image
from reward_services.geneval.scorer import GenEvalScorer
from reward_services.registry import load_scorer
from reward_services.weights import WeightsError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"detector": "mask2former"}, "needs --option model=.*convert-detector.*facebook/mask2former"),
        ({"detector": "mmdet"}, "needs the checkpoint"),
        (
            {"detector": "mmdet", "model": "x.pth"},
            "needs mmcv and mmengine and mmdet: install flow-grpo",
        ),
        ({"model": "x"}, "detector='shapes' has no model"),
        ({"colors_model": "x"}, "colors='palette' has no model"),
        ({"detector": "mask2former", "model": "x", "world": "small"}, "world='small' is about detector='shapes'"),
        ({"colors": "eyes"}, "colors='eyes'"),
        ({"half": "perhaps"}, "must be bool"),
        ({"images_at_once": "few"}, "must be int"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_services.geneval.backends._is_installed", lambda _: False)
    with pytest.raises(ValueError, match=words):
        load_scorer("geneval", options)


def test_names_of_models_are_part_of_the_version(tmp_path: Path) -> None:
    scorer: Any = load_scorer(
        "geneval", {"detector": "mask2former", "model": f"{tmp_path}/coco/", "colors_model": "openai/clip-x"}
    )
    assert (scorer.version, scorer.batch_invariant) == ("1+mask2former+coco+clip+clip-x", False)
    plain: Any = load_scorer("geneval", {})
    assert (plain.version, plain.batch_invariant) == ("1", True)


def test_absent_weights_are_told_when_loading(tmp_path: Path) -> None:
    scorer = GenEvalScorer(detector="mask2former", model=str(tmp_path / "nothing"))
    with pytest.raises(WeightsError, match="there is no directory"):
        scorer.load()


class TwoCats:
    """Sees the same in every picture: two cats, the second one out of the running, and a tv."""

    classes = ("cat", "tv")

    def detections(self, images: list[Image]) -> list[list[Detection]]:
        mask = np.ones((32, 32), dtype=bool)
        box = (0.0, 0.0, 32.0, 32.0)
        seen = [("cat", 0.95), ("cat", 0.2), ("tv", 0.8)]
        return [[Detection(label, score, box, mask) for label, score in seen] for _ in images]


def test_crops_of_all_items_are_named_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of the color classifier a batch, with the objects asked in a color and no others."""
    save_random_clip(tmp_path, "tiny")
    monkeypatch.setattr("reward_services.geneval.scorer.make_detector", lambda _: TwoCats())
    calls: list[list[tuple[int, str, float]]] = []

    def counted(choice: Any) -> Any:
        classifier = make_colors(choice)
        name = classifier.colors

        def colors(objects: Any) -> list[str]:
            calls.append([(int(image[0, 0, 0]), thing.label, thing.score) for image, thing in objects])
            return name(objects)

        classifier.colors = colors  # type: ignore[method-assign]
        return classifier

    monkeypatch.setattr("reward_services.geneval.scorer.make_colors", counted)
    scorer = GenEvalScorer(detector="mask2former", model="x", colors_model=str(tmp_path), device="cpu")
    scorer.load()
    prompts = ["a photo of a red cat", "a photo of a dog", "a photo of a cat", "a photo of a blue cat and a red tv"]
    items = [Item(np.full((32, 32, 3), 40 * index, dtype=np.uint8), text) for index, text in enumerate(prompts)]
    outcomes = scorer.score(items)
    assert calls == [[(0, "cat", 0.95), (120, "cat", 0.95), (120, "tv", 0.8)]]
    assert isinstance(outcomes[1], ItemError)
    assert outcomes[1].code == ErrorCode.MISSING_METADATA
    assert isinstance(outcomes[2], Score)
    assert outcomes[2].score == 1.0
    for outcome, colored in zip((outcomes[0], outcomes[3]), (1, 2), strict=True):
        assert isinstance(outcome, Score)
        assert sum("color" in detection for detection in outcome.details["detections"]) == colored
