"""The world's lettering: capitals as strokes, and fonts that are ways to pull them.

A letter is a list of open polylines in the square [0, 1]^2, y pointing down; a font widens, slants and thickens it.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tiny_world.raster import FIXED_POINT_BITS, SUBPIXELS, coverage_of, fixed_point

Strokes = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Font:
    """How letters are written: thickness of the pen in pixels, width of a letter as a share of the widest, and how far
    its top leans to the right, as a share of its height."""

    name: str
    pen: float
    width: float
    slant: float = 0.0


FONTS = (Font("regular", 2.8, 0.96), Font("bold", 4.0, 1.0), Font("narrow", 2.8, 0.8), Font("italic", 3.0, 0.88, 0.16))


def _line(*points: tuple[float, float]) -> NDArray[np.float64]:
    return np.array(points, dtype=np.float64)


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float) -> NDArray[np.float64]:
    """Part of an ellipse; degrees, 0 to the right and growing clockwise as seen."""
    angles = np.radians(np.linspace(start, stop, 25))
    return np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)


def _bow(top: float, bottom: float, left: float, right: float) -> NDArray[np.float64]:
    """The round of a D between two heights: along the top, around, and back."""
    middle, height = (top + bottom) / 2, (bottom - top) / 2
    reach = min(right - left, 0.5)
    round_ = _arc(right - reach, middle, reach, height, -90, 90)
    return np.concatenate([_line((left, top)), round_, _line((left, bottom))])


_SPINE = _line((0, 0), (0, 1))

LETTERS: dict[str, Strokes] = {
    "A": [_line((0, 1), (0.5, 0), (1, 1)), _line((0.18, 0.66), (0.82, 0.66))],
    "B": [_SPINE, _bow(0, 0.47, 0, 0.88), _bow(0.47, 1, 0, 1)],
    "C": [_arc(0.52, 0.5, 0.52, 0.5, -48, -312)],
    "D": [_SPINE, _bow(0, 1, 0, 1)],
    "E": [_line((1, 0), (0, 0), (0, 1), (1, 1)), _line((0, 0.48), (0.85, 0.48))],
    "F": [_line((1, 0), (0, 0), (0, 1)), _line((0, 0.5), (0.85, 0.5))],
    "G": [np.concatenate([_arc(0.52, 0.5, 0.52, 0.5, -48, -342), _line((1, 0.54), (0.58, 0.54))])],
    "H": [_SPINE, _line((1, 0), (1, 1)), _line((0, 0.48), (1, 0.48))],
    "I": [_line((0.5, 0), (0.5, 1)), _line((0.2, 0), (0.8, 0)), _line((0.2, 1), (0.8, 1))],
    "J": [np.concatenate([_line((0.9, 0)), _arc(0.45, 0.68, 0.45, 0.32, 0, 165)])],
    "K": [_SPINE, _line((0.95, 0), (0.02, 0.6)), _line((0.34, 0.4), (1, 1))],
    "L": [_line((0, 0), (0, 1), (0.95, 1))],
    "M": [_line((0, 1), (0, 0), (0.5, 0.72), (1, 0), (1, 1))],
    "N": [_line((0, 1), (0, 0), (1, 1), (1, 0))],
    "O": [_arc(0.5, 0.5, 0.5, 0.5, 0, 360)],
    "P": [_SPINE, _bow(0, 0.56, 0, 1)],
    "Q": [_arc(0.5, 0.5, 0.5, 0.5, 0, 360), _line((0.5, 0.6), (1.05, 1.1))],
    "R": [_SPINE, _bow(0, 0.54, 0, 0.96), _line((0.46, 0.54), (1, 1))],
    "S": [np.concatenate([_arc(0.5, 0.25, 0.44, 0.25, -25, -262), _arc(0.5, 0.74, 0.48, 0.26, -82, 162)])],
    "T": [_line((0, 0), (1, 0)), _line((0.5, 0), (0.5, 1))],
    "U": [np.concatenate([_line((0, 0)), _arc(0.5, 0.64, 0.5, 0.36, 180, 0), _line((1, 0))])],
    "V": [_line((0, 0), (0.5, 1), (1, 0))],
    "W": [_line((0, 0), (0.24, 1), (0.5, 0.3), (0.76, 1), (1, 0))],
    "X": [_line((0, 0), (1, 1)), _line((1, 0), (0, 1))],
    "Y": [_line((0, 0), (0.5, 0.5), (1, 0)), _line((0.5, 0.5), (0.5, 1))],
    "Z": [_line((0, 0), (1, 0), (0, 1), (1, 1))],
}


def ink(letter: str, font: Font, x: float, y: float, width: float, height: float, size: int) -> NDArray[np.float32]:
    """Antialiased coverage in [0, 1] of a letter on a ``size`` x ``size`` grid.

    (x, y) is the upper left corner of its room in pixels; the pen stays inside but for the slant. KeyError for
    anything but a capital.
    """
    inner_width, inner_height = width - font.pen, height - font.pen
    lean = font.slant * inner_height
    strokes = [
        np.stack(
            [
                x + font.pen / 2 + stroke[:, 0] * inner_width + (0.5 - stroke[:, 1]) * lean,
                y + font.pen / 2 + stroke[:, 1] * inner_height,
            ],
            axis=1,
        )
        for stroke in LETTERS[letter]
    ]
    pen = math.ceil(font.pen * SUBPIXELS)
    lines = [fixed_point(stroke) for stroke in strokes]
    return coverage_of(lambda fine: cv2.polylines(fine, lines, False, 255, pen, shift=FIXED_POINT_BITS), size)
