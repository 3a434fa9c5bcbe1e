"""Colors of the tiny world: the nearest of the palette to the median color of an object."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from reward_services.geneval.detector import Detection, Image
from tiny_world.shapes import PALETTE


def lab(rgb: NDArray[np.generic]) -> NDArray[np.float32]:
    """(..., 3) RGB of 0 to 255 as CIE L*a*b*."""
    flat = np.asarray(rgb, dtype=np.float32).reshape(1, -1, 3) / np.float32(255)
    return np.asarray(cv2.cvtColor(flat, cv2.COLOR_RGB2LAB), dtype=np.float32).reshape(rgb.shape)


class PaletteColors:
    """Nearest palette color in Lab; ``names`` restricts the choice."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = tuple(PALETTE if names is None else names)
        self._lab = lab(np.array([PALETTE[name] for name in self.names]))

    def colors(self, objects: Sequence[tuple[Image, Detection]]) -> list[str]:
        """One color name for each detection in its image (H, W, 3)."""
        return [self._color(image, detection.mask) for image, detection in objects]

    def _color(self, image: Image, mask: NDArray[np.bool_]) -> str:
        inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), dtype=np.uint8)).astype(bool)
        pixels = image[inside if inside.sum() >= 5 else mask]  # rim pixels are mixed with the ground
        middle = np.median(pixels, axis=0)
        return self.names[int(np.argmin(np.linalg.norm(self._lab - lab(middle), axis=1)))]
