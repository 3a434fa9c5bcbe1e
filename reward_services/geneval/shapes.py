"""The ``shapes`` detector: finds the tiny world's shapes with OpenCV, no network.

A picture is brought to 64 pixels on its long side and its gray ground is measured. What stands off the ground is cut
into connected pieces, and a piece with several flat colors into one piece a color. A rim pixel is a mixture of ground
and object, and a mixture lies on the straight line between the two in RGB: so each piece gets an opacity map, whose
half-way contour is compared with every outline at the same area and centroid, by IoU. Confidence is a calibrated
function of how far the best outline is from the contour: whole clean shapes exceed .9, which counting needs; blobs,
merged and half shapes stay below.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from reward_services.geneval.colors import lab
from reward_services.geneval.detector import Detection, Image
from tiny_world.shapes import GROUND, OUTLINES, PALETTE, coverage

WORK_SIZE = 64
"""Pixels on the long side of the picture the detector works on; all pixel figures below belong to it."""

STANDS_OFF = 16.0
"""Distance in Lab from the ground at which a pixel belongs to an object (brown, the closest color, is at 36)."""

SMALLEST_PIECE = 24
"""Pixels. The smallest whole shape of the world has 78."""

SMALLEST_CORE = 9
"""Pixels that must survive an erosion for a second color of a piece to be an object of its own."""

MOST_PIECES = 24
"""Larger pieces first; bounds the time spent on a picture of noise."""

MIXTURE_TOLERANCE = 42.0
"""RGB distance from the line between ground and object up to which a pixel is a mixture of the two."""

ZOOM = 4
"""Magnification at which contours are compared."""

HALF_SURE_DEVIATION = 0.062
STEEPNESS = 110.0
"""Confidence is .9 at a deviation of .042 and .3 at .07. Deviations measured: clean shapes up to .022, blurred by .8
pixels with noise of 7 levels up to .033 (rings .048); an ellipse of 1.15 : 1 from .039, a wobbly blob from .047,
a circle that lost a quarter from .05 or a half from .075, two merged shapes from .09."""

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass(frozen=True, slots=True)
class _Outline:
    """A shape of radius one: its area, centroid (x, y), and area over perimeter."""

    area: float
    centroid: NDArray[np.float64]
    breadth: float


class ShapesDetector:
    """Finds ``classes`` (default: all eight shapes) painted in ``colors`` (default: all ten) on a gray ground."""

    def __init__(self, classes: Sequence[str] | None = None, colors: Sequence[str] | None = None) -> None:
        self.classes = tuple(OUTLINES if classes is None else classes)
        self._outlines = {name: _measured(name) for name in self.classes}
        names = tuple(PALETTE if colors is None else colors)
        self._palette = np.array([PALETTE[name] for name in names], dtype=np.float32)
        self._palette_lab = lab(self._palette)

    def detections(self, images: Sequence[Image]) -> list[list[Detection]]:
        """Objects of each image (H, W, 3), most confident first; one detection a piece of the picture."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> list[Detection]:
        height, width = image.shape[:2]
        zoom = WORK_SIZE / max(height, width)
        if zoom != 1:
            size = (max(round(width * zoom), 1), max(round(height * zoom), 1))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
        found = []
        for opacity in self._pieces(image):
            label, score, box = self._recognise(opacity)
            mask = opacity > 0.5
            if zoom != 1:
                box = (box[0] / zoom, box[1] / zoom, box[2] / zoom, box[3] / zoom)
                mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
            found.append(Detection(label, score, box, mask))
        return sorted(found, key=lambda detection: -detection.score)

    def _pieces(self, image: Image) -> list[NDArray[np.float32]]:
        """Opacity maps (H, W) in [0, 1], one for each object-like piece of the picture."""
        rgb = image.astype(np.float32)
        ground = _ground(rgb)
        image_lab = lab(rgb)
        off = np.linalg.norm(image_lab - lab(ground), axis=-1) > STANDS_OFF
        nearest = np.argmin(np.linalg.norm(image_lab[:, :, None] - self._palette_lab, axis=-1), axis=-1)
        pieces = []
        for whole in _connected(off):
            for part in self._one_color_parts(whole, nearest, rgb, ground):
                if not _spans(part):
                    pieces.append(_opacity(part, off & ~part, rgb, ground))
        whole_enough = (piece for piece in pieces if (piece > 0.5).sum() >= SMALLEST_PIECE)
        return list(itertools.islice(whole_enough, MOST_PIECES))

    def _one_color_parts(
        self,
        whole: NDArray[np.bool_],
        nearest: NDArray[np.int64],
        rgb: NDArray[np.float32],
        ground: NDArray[np.float32],
    ) -> list[NDArray[np.bool_]]:
        """Split a connected piece (H, W) that shows several flat colors; a rim's mixed colors do not count."""
        cores: list[NDArray[np.bool_]] = []
        left = whole
        for _ in self._palette:
            inside = _eroded(left)
            counts = np.bincount(nearest[inside], minlength=len(self._palette))
            if counts.max() < (SMALLEST_CORE if cores else 1):
                break
            painted = nearest == counts.argmax()
            core = inside & painted
            cores.append(core)
            color = np.median(rgb[core], axis=0)
            left = left & ~painted & (_off_line(rgb, ground, color) > MIXTURE_TOLERANCE)
        if len(cores) < 2:
            return [whole]
        distances = [cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 3) for core in cores]
        owner = np.argmin(distances, axis=0)
        return [part for index in range(len(cores)) for part in _connected(whole & (owner == index))]

    def _recognise(self, opacity: NDArray[np.float32]) -> tuple[str, float, tuple[float, float, float, float]]:
        """(class, confidence, box) of the outline that fits best."""
        rows, columns = np.nonzero(opacity > 0.1)
        top, left = int(rows.min()) - 3, int(columns.min()) - 3
        side = max(int(rows.max()) - top, int(columns.max()) - left) + 4
        patch = np.zeros((side, side), dtype=np.float32)
        patch[rows - top, columns - left] = opacity[rows, columns]
        large = _enlarged(patch)
        ys, xs = np.nonzero(large)
        centre = (np.array([xs.mean(), ys.mean()]) + 0.5) / ZOOM
        overlaps = {}
        for name, outline in self._outlines.items():
            radius = math.sqrt(len(xs) / outline.area) / ZOOM
            cx, cy = centre - radius * outline.centroid
            drawn = _enlarged(coverage(name, cx, cy, radius, side))
            overlaps[name] = float((large & drawn).sum() / (large | drawn).sum())
        label = max(overlaps, key=overlaps.__getitem__)
        box = (
            float(left + xs.min() / ZOOM),
            float(top + ys.min() / ZOOM),
            float(left + (xs.max() + 1) / ZOOM),
            float(top + (ys.max() + 1) / ZOOM),
        )
        return label, confidence((1 - overlaps[label]) * self._outlines[label].breadth), box


def confidence(deviation: float) -> float:
    """Confidence in [0, 1] at a mean distance between contour and best outline, in units of the outline's radius.

    (1 - IoU) * area / perimeter is that distance: a thin ring loses more IoU to the same blur than a disk.
    """
    return 1 / (1 + math.exp(STEEPNESS * (deviation - HALF_SURE_DEVIATION)))


def _ground(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """RGB of the ground: the median of what is close to its nominal gray, which is also the answer if little is."""
    close = np.abs(rgb - GROUND).max(axis=-1) < 28
    if close.mean() < 0.05:
        return np.full(3, GROUND, dtype=np.float32)
    return np.asarray(np.median(rgb[close], axis=0), dtype=np.float32)


def _connected(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Connected pieces of a mask, large ones first, crumbs left out."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    order = sorted((i for i in range(1, count) if areas[i] >= SMALLEST_PIECE), key=lambda i: -areas[i])
    return [labels == i for i in order[:MOST_PIECES]]


def _spans(mask: NDArray[np.bool_]) -> bool:
    """Whether a mask reaches from one border of the picture to the opposite one: then its outline is not seen."""
    return bool((mask[0].any() and mask[-1].any()) or (mask[:, 0].any() and mask[:, -1].any()))


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(cv2.erode(mask.astype(np.uint8), _CROSS)) > 0


def _along(rgb: NDArray[np.float32], ground: NDArray[np.float32], color: NDArray[np.float32]) -> NDArray[np.float32]:
    """Position of each pixel along the line from ground (0) to color (1) in RGB, (H, W), clipped to [0, 1]."""
    step = color - ground
    return np.asarray(np.clip((rgb - ground) @ step / max(float(step @ step), 1.0), 0, 1), dtype=np.float32)


def _off_line(rgb: NDArray[np.float32], ground: NDArray[np.float32], color: NDArray[np.float32]) -> NDArray[np.float32]:
    """RGB distance (H, W) of each pixel from the line between ground and color."""
    on_line = ground + _along(rgb, ground, color)[..., None] * (color - ground)
    return np.asarray(np.linalg.norm(rgb - on_line, axis=-1), dtype=np.float32)


def _opacity(
    part: NDArray[np.bool_], others: NDArray[np.bool_], rgb: NDArray[np.float32], ground: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Opacity (H, W) of one object: how far each of its pixels, and of its rim, is from ground to object color."""
    inside = _eroded(part)
    color = np.median(rgb[inside if inside.any() else part], axis=0).astype(np.float32)
    near = cv2.dilate(part.astype(np.uint8), np.ones((5, 5), dtype=np.uint8)) > 0
    return np.asarray(np.where(near & ~others, _along(rgb, ground, color), 0), dtype=np.float32)


def _enlarged(opacity: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What lies inside the half-way contour of an opacity map, ``ZOOM`` times as large."""
    return np.asarray(cv2.resize(opacity, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)) > 0.5


def _measured(name: str) -> _Outline:
    radius, middle = 10.0, 16.0  # a typical size: drawing adds a fraction of a pixel to every outline
    drawn = coverage(name, middle, middle, radius, 32)
    area = float(drawn.sum())
    ys, xs = np.mgrid[:32, :32] + 0.5
    centroid = np.array([(drawn * xs).sum(), (drawn * ys).sum()]) / area
    perimeter = sum(
        float(np.linalg.norm(contour - np.roll(contour, 1, axis=0), axis=1).sum()) for contour in OUTLINES[name]
    )
    return _Outline(area / radius**2, (centroid - middle) / radius, area / radius**2 / perimeter)
