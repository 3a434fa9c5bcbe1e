"""What GenEval needs from an object detector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One object: its class, confidence in [0, 1], box (x0, y0, x1, y1) in pixels, and mask (H, W) of the image."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_]


class Detector(Protocol):
    """``detections`` takes images (H, W, 3) RGB of any sizes and returns one list an image, in any order.

    ``classes`` are the labels it can give; a prompt that asks for another class cannot be scored.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    def detections(self, images: Sequence[Image]) -> list[list[Detection]]: ...


class ColorClassifier(Protocol):
    """``names`` are the colors it can give; ``colors`` returns one of them for each object, of one image or several."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def colors(self, objects: Sequence[tuple[Image, Detection]]) -> list[str]: ...
