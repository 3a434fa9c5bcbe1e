"""Antialiased drawing: painted on a finer grid in fixed-point coordinates, then averaged."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

SUBPIXELS = 4
FIXED_POINT_BITS = 6
"""The ``shift`` of OpenCV's drawing functions."""


def fixed_point(points: NDArray[np.float64]) -> NDArray[np.int32]:
    """Points (N, 2) in pixels as OpenCV's drawing functions take them on the finer grid."""
    scale = SUBPIXELS * (1 << FIXED_POINT_BITS)
    return np.round((points - 0.5 / SUBPIXELS) * scale).astype(np.int32)


def coverage_of(paint: Callable[[NDArray[np.uint8]], object], size: int) -> NDArray[np.float32]:
    """How much of each pixel is covered: (size, size) in [0, 1]. ``paint`` puts 255 on the finer grid."""
    fine = np.zeros((size * SUBPIXELS, size * SUBPIXELS), dtype=np.uint8)
    paint(fine)
    coarse = cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(coarse, dtype=np.float32) / np.float32(255)
