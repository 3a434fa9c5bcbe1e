"""PaddleOCR 3 as a text reader, with models from a directory or from PaddleOCR's own download."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from reward_services.ocr.reader import DETECTOR_SIDE, LEAST_CONFIDENCE, TextLine, text_lines

_KINDS = {"detection": "_det", "recognition": "_rec"}


@dataclass(frozen=True, slots=True)
class PaddleModel:
    """A model as PaddleOCR saves it: a folder with `inference.yml`, which names it, and the weights."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class PaddleModels:
    """What reading takes: one model that finds lines and one that reads them."""

    detection: PaddleModel
    recognition: PaddleModel


def find_models(folder: Path) -> PaddleModels:
    """The detection and the recognition model among the folders in `folder`. Raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"models={folder} is no folder; it must hold a PaddleOCR detection and a recognition model")
    named = [PaddleModel(_model_name(path), path.parent) for path in sorted(folder.glob("*/inference.yml"))]
    found = {kind: [model for model in named if model.name.endswith(end)] for kind, end in _KINDS.items()}
    for kind, models in found.items():
        if len(models) != 1:
            those = ", ".join(model.folder.name for model in models) or "none"
            raise ValueError(
                f"models={folder} must hold one {kind} model, a folder whose inference.yml names a "
                f"model_name ending in {_KINDS[kind]}; found {those}"
            )
    return PaddleModels(found["detection"][0], found["recognition"][0])


def import_quietly() -> None:
    """Import PaddlePaddle without its signal handlers. To be called in the main thread before any are set.

    Its own would replace a server's, and end it at SIGTERM with what is in flight.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No ccache found", UserWarning)  # a compiler cache; nothing is compiled
        import paddle
    paddle.disable_signal_handler()


class PaddleReader:
    """PP-OCR in PaddlePaddle, on a GPU where PaddlePaddle was built for one, else in one thread of the CPU.

    Without `models` PaddleOCR takes its default ones from its cache or downloads them. PaddleOCR is not thread-safe:
    build and call a reader in one thread. Raises OSError when there are no models to be had.
    """

    def __init__(self, models: PaddleModels | None = None, detector_side: int = DETECTOR_SIDE) -> None:
        from paddleocr import PaddleOCR

        logging.getLogger("paddlex").setLevel(logging.ERROR)
        chosen: dict[str, Any] = {}
        if models is not None:
            chosen = {
                "text_detection_model_name": models.detection.name,
                "text_detection_model_dir": str(models.detection.folder),
                "text_recognition_model_name": models.recognition.name,
                "text_recognition_model_dir": str(models.recognition.folder),
            }
        try:
            self._engine = PaddleOCR(
                **chosen,
                use_doc_orientation_classify=False,
                use_doc_unwarping=False,
                use_textline_orientation=False,
                text_det_limit_side_len=detector_side,
                text_det_limit_type="max",
                text_rec_score_thresh=LEAST_CONFIDENCE,
                enable_mkldnn=False,  # PaddlePaddle 3.3 cannot run these models through oneDNN
                cpu_threads=1,
            )
        except Exception as error:  # PaddleOCR raises plain Exception when it reaches no download
            if models is not None:
                raise
            raise OSError(
                f"PaddleOCR found no models in its cache and could not download them ({error}): give --option "
                "models=DIR, a folder with a detection and a recognition model, or allow the download once"
            ) from error

    def read(self, image: NDArray[np.uint8]) -> list[TextLine]:
        """The lines of an (H, W, 3) RGB image in reading order; empty if there is no text."""
        (result,) = self._engine.predict(np.ascontiguousarray(image[:, :, ::-1]))
        return text_lines(result["rec_texts"], result["rec_scores"], result["rec_polys"])


def _model_name(path: Path) -> str:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(settings["Global"]["model_name"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not name its model as Global: model_name ({error!r})") from None
