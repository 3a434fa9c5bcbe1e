"""Outlines, palette and antialiased drawing of the world's shapes.

Every outline is a list of closed contours in the square [-1, 1]^2, y pointing down; contours
combine by the even-odd rule, so a ring is two circles.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from tiny_world.raster import FIXED_POINT_BITS, coverage_of, fixed_point

Contours = list[NDArray[np.float64]]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "orange": (244, 138, 30),
    "yellow": (248, 218, 52),
    "green": (46, 158, 72),
    "blue": (44, 92, 210),
    "purple": (128, 58, 172),
    "pink": (246, 150, 190),
    "brown": (120, 76, 42),
    "black": (18, 18, 20),
    "white": (246, 246, 244),
}
"""RGB of GenEval's ten colors as the world paints them."""

GROUND = 128
"""Mean gray level of the ground."""


def _arc(radius: float, start: float, stop: float, points: int, cx: float = 0.0) -> NDArray[np.float64]:
    angles = np.linspace(start, stop, points)
    return np.stack([cx + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _circle(radius: float) -> NDArray[np.float64]:
    return _arc(radius, 0.0, 2 * math.pi, 49)[:-1]


def _polygon(*points: tuple[float, float]) -> Contours:
    return [np.array(points, dtype=np.float64)]


def _star() -> Contours:
    angles = -math.pi / 2 + np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.46)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.08], axis=1)
    return [points]


def _heart() -> Contours:
    t = np.linspace(0.0, 2 * math.pi, 65)[:-1]
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x / 16, (-y - 2.5) / 14.5], axis=1)]


def _cross(arm: float = 0.36) -> Contours:
    a = arm
    return _polygon(
        (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)
    )


def _moon() -> Contours:
    outer = _arc(1.0, math.radians(48), math.radians(312), 40, cx=0.16)
    tip_x, tip_y = outer[0]
    centre = 0.62
    radius = math.hypot(tip_x - centre, tip_y)
    half = math.atan2(tip_y, tip_x - centre)
    inner = _arc(radius, -half, half - 2 * math.pi, 30, cx=centre)
    return [np.concatenate([outer, inner[1:-1]])]


OUTLINES: dict[str, Contours] = {
    "circle": [_circle(1.0)],
    "square": _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": _polygon((0.0, -0.95), (1.05, 0.88), (-1.05, 0.88)),
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
    "ring": [_circle(1.0), _circle(0.55)],
    "moon": _moon(),
}


def extent(shape: str) -> tuple[float, float, float, float]:
    """Bounding box (x0, y0, x1, y1) of an outline of radius one around the origin."""
    points = np.concatenate(OUTLINES[shape])
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def coverage(shape: str, cx: float, cy: float, radius: float, size: int) -> NDArray[np.float32]:
    """Antialiased coverage in [0, 1] of a shape on a ``size`` x ``size`` grid, coordinates in pixels."""
    contours = [fixed_point(points * radius + np.array([cx, cy])) for points in OUTLINES[shape]]
    return coverage_of(lambda fine: cv2.fillPoly(fine, contours, 255, shift=FIXED_POINT_BITS), size)
