"""Choosing an OCR backend and its models, with nothing loaded."""

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest

from reward_services.ocr import scorer as ocr
from reward_services.ocr.paddle import find_models
from reward_services.ocr.scorer import OcrScorer

pytestmark = pytest.mark.unit


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for folder, name in (("finder", "PP-OCRv5_server_det"), ("speller", "PP-OCRv5_server_rec"), ("turner", "PP-LCNet")):
        save(tmp_path / folder, f"Global: {{model_name: {name}}}")
    return tmp_path


def save(folder: Path, settings: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "inference.yml").write_text(settings)


def test_models_are_known_by_the_name_in_their_settings(models: Path) -> None:
    found = find_models(models)
    assert (found.detection.name, found.detection.folder) == ("PP-OCRv5_server_det", models / "finder")
    assert (found.recognition.name, found.recognition.folder) == ("PP-OCRv5_server_rec", models / "speller")


def test_what_is_wrong_with_a_models_folder_is_named(models: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        find_models(models / "nowhere")
    save(models / "second", "Global: {model_name: en_PP-OCRv5_mobile_rec}")
    with pytest.raises(ValueError, match=r"one recognition model.*found second, speller"):
        find_models(models)
    (models / "finder" / "inference.yml").unlink()
    with pytest.raises(ValueError, match=r"one detection model.*found none"):
        find_models(models)
    for broken in ("Global: [", "- a list", "Global:"):
        save(models / "finder", broken)
        with pytest.raises(ValueError, match=r"finder.inference.yml does not name its model"):
            find_models(models)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tesseract"}, "no backend 'tesseract': choose rapid or paddle"),
        ({"models": "somewhere"}, "models belongs to backend=paddle"),
        ({"detector_side": 8}, "at least 32 pixels, got 8"),
    ],
)
def test_wrong_options_are_told_before_anything_loads(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OcrScorer(**options)  # type: ignore[arg-type]


def test_an_absent_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(ocr, "version", absent)
    with pytest.raises(ValueError, match=r"paddleocr\): pip install 'flow-grpo\[ocr-paddle\]'"):
        OcrScorer(backend="paddle")


def test_paddle_gives_its_signals_back_before_a_server_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[bool] = []
    paddle = ModuleType("paddle")
    paddle.disable_signal_handler = lambda: given_back.append(True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "paddle", paddle)
    monkeypatch.setattr(ocr, "version", lambda name: "9.9")
    OcrScorer(backend="paddle")
    assert given_back == [True]


def test_the_version_tells_apart_whatever_scores_differently(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "version", lambda name: "9.9")
    monkeypatch.setattr(ocr, "import_quietly", lambda: None)
    chosen = [{}, {"strict": True}, {"detector_side": 640}, {"backend": "paddle"}]
    chosen.append({"backend": "paddle", "models": str(models)})
    versions = [OcrScorer(**options).version for options in chosen]  # type: ignore[arg-type]
    assert len(set(versions)) == len(versions)
    assert versions[0] == "rapidocr-9.9"
    assert versions[-1] == "paddleocr-9.9+PP-OCRv5_server_det+PP-OCRv5_server_rec"
