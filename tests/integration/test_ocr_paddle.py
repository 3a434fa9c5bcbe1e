"""PaddleOCR itself, on the Paddle weights inside a wheel (make test-paddle)."""

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from benchmarks.paddle_wheel_models import WHEEL, write_models
from reward_api import Item, RewardClient, Score
from reward_services.ocr.scorer import OcrScorer

MISSING = [name for name in ("paddleocr", "paddle", WHEEL) if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.paddle,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; make test-paddle installs them"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(models: Path) -> OcrScorer:
    scorer = OcrScorer(backend="paddle", models=str(models))
    scorer.warm_up()
    return scorer


def picture(*rows: str, degrees: float = 0, ink: int = 20, size: float = 60) -> np.ndarray:
    image = Image.new("RGB", (512, 512), (200, 200, 200))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for number, row in enumerate(rows):
        pen.text((256, 256 + 1.6 * size * (number - (len(rows) - 1) / 2)), row, font=font, fill=(ink,) * 3, anchor="mm")
    return np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(200, 200, 200)))


def reading(scorer: OcrScorer, image: np.ndarray) -> Score:
    (outcome,) = scorer.score([Item(image, 'a sign that says "anything"')])
    assert isinstance(outcome, Score)
    return outcome


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (picture("Bakery"), "Bakery"),
        (picture("Open Now"), "OpenNow"),
        (picture("Danger", degrees=25), "Danger"),
        (picture("Winter", ink=176), "Winter"),
        (picture("Fresh Coffee", "every day"), "FreshCoffeeeveryday"),
        (picture("up    here", "then    down", degrees=20, size=40), "upherethendown"),
    ],
    ids=["word", "space", "turned", "faint", "lines", "slanted lines"],
)
def test_rendered_text_is_read_in_order(scorer: OcrScorer, image: np.ndarray, text: str) -> None:
    assert reading(scorer, image).details["recognised"].replace(" ", "") == text


def test_chinese_is_read(scorer: OcrScorer) -> None:
    cv2 = pytest.importorskip("cv2", minversion="5")  # its font has the letters
    image = np.full((512, 512, 3), 230, np.uint8)
    cv2.putText(image, "欢迎光临", (60, 280), (20, 20, 20), cv2.FontFace("uni"), 80)
    assert reading(scorer, image).details["recognised"] == "欢迎光临"


@pytest.mark.parametrize("shape", [(512, 512), (1, 1), (3, 200), (200, 3)])
def test_an_empty_image_reads_as_nothing(scorer: OcrScorer, shape: tuple[int, int]) -> None:
    outcome = reading(scorer, np.full((*shape, 3), 255, np.uint8))
    assert (outcome.score, outcome.details["recognised"], outcome.details["lines"]) == (0.0, "", [])


def test_the_version_names_the_models(scorer: OcrScorer) -> None:
    assert scorer.version.startswith("paddleocr-3.")
    assert scorer.version.endswith("+PP-OCRv4_mobile_det+PP-OCRv4_mobile_rec")


@pytest.fixture
def service(models: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    ready = tmp_path / "address"
    command = [sys.executable, "-m", "flow_grpo", "serve", "ocr", "--option", "backend=paddle"]
    command += ["--option", f"models={models}", "--port", "0", "--ready-file", str(ready)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not ready.exists():
                assert process.poll() is None, "the service died at its start"
                assert time.monotonic() < deadline, "the service wrote no address"
                time.sleep(0.1)
            yield process, ready.read_text().strip()
        finally:
            process.kill()


async def test_sigterm_finishes_what_is_in_flight(service: tuple[subprocess.Popen[str], str]) -> None:
    process, url = service
    async with RewardClient(url, timeout_s=120, attempts=60) as client:
        await client.score([Item(picture("warm"), '"warm"')])
        in_flight = asyncio.create_task(client.score([Item(picture("Stop"), '"Stop"')] * 3))
        await asyncio.sleep(0.3)
        process.terminate()
        assert [outcomes["ocr"].score for outcomes in await in_flight] == [1.0] * 3
    assert "FatalError" not in process.communicate(timeout=20)[1]


def test_without_models_and_network_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flow_grpo", "serve", "ocr", "--option", "backend=paddle", "--port", "0"]
    unreachable = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    environment = {**os.environ, **unreachable, "PADDLE_PDX_CACHE_HOME": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("flow-grpo: serve ocr: failed while warming up: PaddleOCR found no models in its cache")
    assert "--option models=DIR" in last
