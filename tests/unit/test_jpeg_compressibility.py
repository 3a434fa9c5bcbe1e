"""JPEG compressibility against the size of a file written to disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reward_api import Item
from reward_services.jpeg_compressibility.scorer import JpegCompressibilityScorer
from reward_services.scoring import info_of

pytestmark = pytest.mark.unit


def test_minus_the_kilobytes_of_the_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    plain = np.full((64, 96, 3), 90, np.uint8)
    scores = []
    for image in (noise, plain):
        Image.fromarray(image).save(tmp_path / "x.jpg", quality=95)
        (outcome,) = JpegCompressibilityScorer().score([Item(image, "anything")])
        assert outcome.score == -((tmp_path / "x.jpg").stat().st_size / 1000)
        scores.append(outcome.score)
    assert scores[0] < scores[1] < 0


def test_a_lower_quality_is_smaller_and_another_version() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    fine, coarse = JpegCompressibilityScorer(), JpegCompressibilityScorer(quality=20)
    assert fine.score([Item(noise, "x")])[0].score < coarse.score([Item(noise, "x")])[0].score
    assert info_of(fine).version != info_of(coarse).version
    with pytest.raises(ValueError, match="quality=0: must be 1 to 95"):
        JpegCompressibilityScorer(quality=0)
