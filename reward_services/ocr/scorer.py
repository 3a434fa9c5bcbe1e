"""The OCR reward as a scorer."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reward_api import ErrorCode, Item, ItemError, Outcome, Score
from reward_services.ocr.paddle import PaddleReader, find_models, import_quietly
from reward_services.ocr.rapid import RapidReader
from reward_services.ocr.reader import DETECTOR_SIDE, Reader, TextLine
from reward_services.ocr.reward import paper_reward, strict_reward, target_text

# The option backend: its distribution, and the extra that brings it.
BACKENDS = {"rapid": ("rapidocr", "ocr"), "paddle": ("paddleocr", "ocr-paddle")}


class OcrScorer:
    """Compares the text an image shows with the text its prompt quotes.

    `backend` is `rapid` (RapidOCR, weights inside its wheel) or `paddle` (PaddleOCR), which takes its models from the
    folder `models` or downloads them. `strict` takes the plain normalised edit distance instead of the paper's reward,
    which gives 1 to any reading that contains the target. `detector_side` is the length in pixels to which larger
    images are shrunk to find their text. `reader` replaces the backend. Raises ValueError.
    """

    name = "ocr"
    low, high = 0.0, 1.0
    metadata = "none; the prompt must quote the text to draw in double quotes"
    batch_limit = 16
    batch_invariant = True

    def __init__(
        self,
        strict: bool = False,
        backend: str = "rapid",
        models: str = "",
        detector_side: int = DETECTOR_SIDE,
        reader: Reader | None = None,
    ) -> None:
        self.strict = strict
        self.meaning = (
            "1 - edit distance / length of the longer of target and reading"
            if strict
            else "1 if the quoted text is contained in the text read, else 1 - min(edit distance, length) / length"
        )
        self._open: Callable[[], Reader]
        if reader is not None:
            engine, self._open = type(reader).__name__, lambda: reader
        else:
            engine, self._open = _choose(backend, models, detector_side)
        self.version = f"{engine}+strict" if strict else engine
        self._reader: Reader | None = None

    def warm_up(self) -> None:
        """Load the weights and run them once."""
        self._read(np.full((64, 64, 3), 255, dtype=np.uint8))

    def score(self, batch: Sequence[Item]) -> list[Outcome]:
        """One outcome an item: the reward in [0, 1], with the target and the lines read as details."""
        return [self._score_item(item) for item in batch]

    def _score_item(self, item: Item) -> Outcome:
        target = target_text(item.prompt)
        if target is None:
            message = f'no text in double quotes, as in: a sign that says "OPEN"; got {item.prompt[:200]!r}'
            return ItemError(ErrorCode.MISSING_TEXT, message)
        lines = self._read(item.image)
        recognised = "".join(line.text for line in lines)
        reward = strict_reward if self.strict else paper_reward
        details = {
            "target": target,
            "recognised": recognised,
            "lines": [{"text": line.text, "confidence": line.confidence, "box": line.box} for line in lines],
        }
        return Score(reward(target, recognised), details)

    def _read(self, image: NDArray[np.uint8]) -> list[TextLine]:
        if self._reader is None:
            self._reader = self._open()
        return self._reader.read(image)


def _choose(backend: str, models: str, detector_side: int) -> tuple[str, Callable[[], Reader]]:
    """What the version says of a backend and its weights, and how to load it. Raises ValueError."""
    if backend not in BACKENDS:
        raise ValueError(f"ocr has no backend {backend!r}: choose {' or '.join(BACKENDS)}")
    if detector_side < 32:
        raise ValueError(f"detector_side must be at least 32 pixels, got {detector_side}")
    if models and backend != "paddle":
        raise ValueError("the option models belongs to backend=paddle; rapid's weights are inside its wheel")
    found = find_models(Path(models)) if models else None
    distribution, extra = BACKENDS[backend]
    try:
        engine = f"{distribution}-{version(distribution)}"
        if backend == "paddle":
            import_quietly()
    except ModuleNotFoundError as error:
        raise ValueError(f"backend {backend} is not installed ({error}): pip install 'flow-grpo[{extra}]'") from None
    if found is not None:
        engine += f"+{found.detection.name}+{found.recognition.name}"
    if detector_side != DETECTOR_SIDE:
        engine += f"+side{detector_side}"
    if backend == "paddle":
        return engine, lambda: PaddleReader(found, detector_side)
    return engine, lambda: RapidReader(detector_side)
