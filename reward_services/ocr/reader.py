"""What a text reader gives, whatever engine is behind it: lines with their corners, and the order to read them in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# The detectors enlarge or keep every image by default, which is most of their cost. Text in generated images is
# large: 320 pixels a side find it as well, and smaller images are left as they are.
DETECTOR_SIDE = 320
# Lines read with less confidence are mostly texture taken for text; both engines' own default before PaddleOCR 3.
LEAST_CONFIDENCE = 0.5

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class TextLine:
    """One recognised line: `confidence` in [0, 1], the `corners` in pixels, clockwise from the start of its top."""

    text: str
    confidence: float
    corners: tuple[Point, Point, Point, Point]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels, around the corners."""
        across, down = zip(*self.corners, strict=True)
        return min(across), min(down), max(across), max(down)


class Reader(Protocol):
    """Anything that reads text from an (H, W, 3) uint8 RGB image; all calls come from one thread."""

    def read(self, image: NDArray[np.uint8]) -> list[TextLine]:
        """The lines in reading order; empty if there is no text."""
        ...


def text_lines(texts: Sequence[str], scores: Sequence[float], polygons: Sequence[Any]) -> list[TextLine]:
    """An engine's parallel answers (a polygon is four points) as lines in reading order."""
    return reading_order(
        [
            TextLine(text, float(score), _corners(polygon))
            for text, score, polygon in zip(texts, scores, polygons, strict=True)
        ]
    )


def reading_order(lines: Sequence[TextLine]) -> list[TextLine]:
    """Rows from top to bottom, each from left to right, seen along the text's own direction.

    Lines are of one row if each two of them share half of the lower one's height. The direction is the median one of
    the lines, weighted with their lengths, so that the words of a slanted sign stay in order.
    """
    angle = _direction(lines)
    placed = sorted((_place(line, angle) for line in lines), key=lambda place: place.top + place.bottom)
    rows: list[list[_Place]] = []
    for place in placed:
        if rows and all(_beside(place, other) for other in rows[-1]):
            rows[-1].append(place)
        else:
            rows.append([place])
    return [place.line for row in rows for place in sorted(row, key=lambda place: place.centre)]


@dataclass(frozen=True, slots=True)
class _Place:
    """A line's extent down the page and its centre along it, once the page is turned by the text's direction."""

    line: TextLine
    top: float
    bottom: float
    centre: float


def _place(line: TextLine, angle: float) -> _Place:
    across = sum(x for x, _ in line.corners) / 4
    down = sum(y for _, y in line.corners) / 4
    cosine, sine = math.cos(angle), math.sin(angle)
    middle = cosine * down - sine * across
    top_left, top_right, bottom_right, bottom_left = line.corners
    height = (math.dist(top_left, bottom_left) + math.dist(top_right, bottom_right)) / 2
    return _Place(line, middle - height / 2, middle + height / 2, cosine * across + sine * down)


def _beside(one: _Place, other: _Place) -> bool:
    shared = min(one.bottom, other.bottom) - max(one.top, other.top)
    return shared >= min(one.bottom - one.top, other.bottom - other.top) / 2


def _direction(lines: Sequence[TextLine]) -> float:
    """The angle, in radians clockwise, where half of the text's length is reached."""
    tops = [(line.corners[0], line.corners[1]) for line in lines]
    slants = sorted((math.atan2(end[1] - start[1], end[0] - start[0]), math.dist(start, end)) for start, end in tops)
    half = sum(length for _, length in slants) / 2
    passed = 0.0
    for angle, length in slants:
        passed += length
        if passed >= half:
            return angle
    return 0.0


def _corners(polygon: Any) -> tuple[Point, Point, Point, Point]:
    first, second, third, fourth = ((round(float(x), 1), round(float(y), 1)) for x, y in polygon)
    return first, second, third, fourth
