"""RapidOCR as a text reader, set for images of generated scenes on one core."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_services.ocr.reader import DETECTOR_SIDE, LEAST_CONFIDENCE, TextLine, text_lines


class RapidReader:
    """PP-OCR detection and recognition with the ONNX weights inside the rapidocr wheel; one thread.

    Images longer than `detector_side` pixels are shrunk to it to find the text; it is read at full size.
    """

    def __init__(self, detector_side: int = DETECTOR_SIDE) -> None:
        from rapidocr import RapidOCR

        self._engine = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.text_score": LEAST_CONFIDENCE,
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
        return text_lines(result.txts, result.scores, result.boxes)
