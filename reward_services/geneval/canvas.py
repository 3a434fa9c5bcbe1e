"""An image as mmdet's Mask2Former sees it, and the way back (mmdet 3.3, COCO test pipeline)."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from reward_services.geneval.detector import Image

LONG_SIDE, SHORT_SIDE = 1333, 800
"""Pixels. An image is scaled until it reaches one of the two."""

DIVISOR = 32
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of ImageNet's RGB values, 0 to 255."""


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """A scaled, normalised image in the top left corner of a canvas (3, H, W) of zeros.

    ``content`` is (height, width) of the scaled image, ``original`` that of the image.
    """

    pixels: torch.Tensor
    content: tuple[int, int]
    original: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), both multiples of 32."""
        return self.pixels.shape[1], self.pixels.shape[2]


def paint(image: Image) -> Canvas:
    """Scale, normalise and pad one RGB image (H, W, 3).

    The bilinear resize is OpenCV's on float32, as in mmdet 3.3; mmdet 2 rounds to whole gray levels after it.
    """
    original = image.shape[0], image.shape[1]
    height, width = scaled_size(*original)
    scaled = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    pixels = torch.from_numpy(np.asarray(scaled, dtype=np.float32)).permute(2, 0, 1)
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return Canvas(F.pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR)), (height, width), original)


def scaled_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) that keep the ratio and fit 1333 by 800, rounded half up, at least 1."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def unpaint(logits_NHW: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """Mask logits of any resolution over the canvas, as logits (N, H, W) over the original image.

    Two bilinear steps, as mmdet takes them: up to the canvas, then from its content to the original size.
    """
    height, width = canvas.content
    up_1NHW = F.interpolate(logits_NHW[None], size=canvas.size, mode="bilinear", align_corners=False)
    return F.interpolate(up_1NHW[..., :height, :width], size=canvas.original, mode="bilinear", align_corners=False)[0]
