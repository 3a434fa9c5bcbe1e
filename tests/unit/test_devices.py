"""Device and precision by what was asked for and by what the machine has, which is made up here."""

import pytest
import torch

from reward_services.devices import chosen_device, chosen_dtype
from reward_services.geneval.clip_colors import ClipColors
from reward_services.geneval.mask2former import Mask2FormerDetector
from reward_services.geneval.official import MmdetDetector
from reward_services.pickscore.scorer import PickScoreScorer
from reward_services.registry import load_scorer

pytestmark = pytest.mark.unit


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("cuda")
def test_on_cuda_half_precision_is_the_default() -> None:
    assert chosen_device("") == torch.device("cuda")
    assert chosen_device("cuda:1") == torch.device("cuda", 1)
    assert chosen_device("cpu") == torch.device("cpu")
    assert chosen_dtype("", torch.device("cuda", 1)) == torch.float16
    assert chosen_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16
    assert chosen_dtype("float32", torch.device("cuda")) == torch.float32
    assert PickScoreScorer("yuvalkirstain/PickScore_v1").version == "PickScore_v1+float16"


@pytest.mark.usefixtures("no_cuda")
def test_elsewhere_single_precision_is_the_default() -> None:
    assert chosen_device("") == torch.device("cpu")
    assert chosen_dtype("", torch.device("cpu")) == torch.float32
    assert PickScoreScorer("yuvalkirstain/PickScore_v1").version == "PickScore_v1"


@pytest.mark.usefixtures("cuda")
def test_the_detector_on_cuda_runs_in_half_precision_and_in_batches() -> None:
    detector = Mask2FormerDetector("somewhere")
    assert (detector.device.type, detector.half, detector.images_at_once) == ("cuda", True, 8)
    assert Mask2FormerDetector("somewhere", half=False).half is False
    elsewhere = Mask2FormerDetector("somewhere", device="cpu")
    assert (elsewhere.half, elsewhere.images_at_once) == (False, 1)
    assert (ClipColors(half=True).dtype, ClipColors(half=False).dtype) == ("", "float32")
    assert MmdetDetector("somewhere").device == "cuda"


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    ("device", "words"),
    [("gpu", "device='gpu' is no torch device"), ("cuda", "finds no CUDA device here; take device=cpu")],
)
@pytest.mark.parametrize("reward", ["pickscore", "geneval"])
def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(reward: str, device: str, words: str) -> None:
    detector = {"detector": "mask2former", "model": "somewhere"} if reward == "geneval" else {}
    with pytest.raises(ValueError, match=words):
        load_scorer(reward, {**detector, "device": device})
