"""The OCR reward as a scorer."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reward_api import ErrorCode, Item, ItemError, Outcome, Score
from reward_services.ocr.reader import RapidReader, TextLine
from reward_services.ocr.reward import paper_reward, strict_reward, target_text


class Reader(Protocol):
    """Anything that reads lines of text from an (H, W, 3) uint8 RGB image."""

    def read(self, image: NDArray[np.uint8]) -> list[TextLine]: ...


class OcrScorer:
    """Compares the text an image shows with the text its prompt quotes.

    `strict` takes the plain normalised edit distance instead of the paper's reward, which gives 1 to any reading
    that contains the target. `reader` replaces RapidOCR.
    """

    name = "ocr"
    low, high = 0.0, 1.0
    metadata = "none; the prompt must quote the text to draw in double quotes"
    batch_limit = 16
    batch_invariant = True

    def __init__(self, strict: bool = False, reader: Reader | None = None) -> None:
        self.strict = strict
        engine = f"rapidocr-{version('rapidocr')}" if reader is None else type(reader).__name__
        self.version = f"{engine}+strict" if strict else engine
        self.meaning = (
            "1 - edit distance / length of the longer of target and reading"
            if strict
            else "1 if the quoted text is contained in the text read, else 1 - min(edit distance, length) / length"
        )
        self._reader = reader

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
            self._reader = RapidReader()
        return self._reader.read(image)
