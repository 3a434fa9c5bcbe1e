"""RapidOCR as a text reader, set for images of generated scenes on one core."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The detector enlarges every image to 736 pixels by default, which is most of its cost. Text in generated images is
# large: 320 pixels a side find it as well, and smaller images are left as they are.
_DETECTOR_SIDE = 320


@dataclass(frozen=True, slots=True)
class TextLine:
    """One recognised line; `box` is (left, top, right, bottom) in pixels, `confidence` in [0, 1]."""

    text: str
    confidence: float
    box: tuple[float, float, float, float]


class RapidReader:
    """PP-OCR detection and recognition with the ONNX weights inside the rapidocr wheel; one thread."""

    def __init__(self, detector_side: int = _DETECTOR_SIDE) -> None:
        from rapidocr import RapidOCR

        self._engine = RapidOCR(
            params={
                "Global.log_level": "error",
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "Det.limit_side_len": detector_side,
                "Det.limit_type": "max",
            }
        )

    def read(self, image: NDArray[np.uint8]) -> list[TextLine]:
        """The lines of an (H, W, 3) RGB image in reading order; empty if there is no text."""
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        # All three switches each time: what one call sets stays for the next.
        result: Any = self._engine(bgr, use_det=True, use_cls=False, use_rec=True)
        if not result.txts:
            return []
        lines = [
            TextLine(text, float(confidence), _bounds(corners))
            for text, confidence, corners in zip(result.txts, result.scores, result.boxes, strict=True)
        ]
        return reading_order(lines)


def reading_order(lines: list[TextLine]) -> list[TextLine]:
    """Rows from top to bottom, each from left to right; a row is what is centred above its first line's bottom."""
    rows: list[list[TextLine]] = []
    for line in sorted(lines, key=_middle):
        if rows and _middle(line) < rows[-1][0].box[3]:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.box[0])]


def _middle(line: TextLine) -> float:
    return (line.box[1] + line.box[3]) / 2


def _bounds(corners: Any) -> tuple[float, float, float, float]:
    left, top = np.min(corners, axis=0)
    right, bottom = np.max(corners, axis=0)
    return round(float(left), 1), round(float(top), 1), round(float(right), 1), round(float(bottom), 1)
