"""GenEval's color classifier: CLIP names the color of an object cut out of its image.

Shapes: K colors, N objects, D embedding channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as Pictures

from reward_services.clip import CLIP_L, Clip, load_clip
from reward_services.geneval.detector import Detection, Image
from reward_services.geneval.metadata import COLORS

GROUND = 0x99
"""Gray level around the object, GenEval's #999."""

LONGEST = 16
"""Times the shorter side of a crop. What lies beyond, CLIP does not see anyway."""

TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")


class ClipColors:
    """The nearest of GenEval's ten colors by CLIP: openai's ViT-L/14, or that of another directory or hub id.

    ``device`` is a torch device, by default cuda where there is one; float16 there unless ``half`` is false.
    ``crops_at_once`` bounds memory. What the colors of a class are called is embedded once and kept.
    """

    names = COLORS

    def __init__(self, model: str = CLIP_L, *, device: str = "", half: bool = True, crops_at_once: int = 64) -> None:
        self.model, self.device, self.dtype = model, device, "" if half else "float32"
        self.crops_at_once = crops_at_once
        self._clip: Clip | None = None
        self._color_KD: dict[str, torch.Tensor] = {}

    def load(self) -> None:
        """Read the weights. Raises WeightsError."""
        if self._clip is None:
            self._clip = load_clip(self.model, fallback=CLIP_L, device=self.device, dtype=self.dtype)

    def colors(self, objects: Sequence[tuple[Image, Detection]]) -> list[str]:
        """One color name for each detection in its RGB image (H, W, 3), all crops in common batches."""
        self.load()
        assert self._clip is not None
        named: list[str] = []
        for start in range(0, len(objects), self.crops_at_once):
            chunk = objects[start : start + self.crops_at_once]
            crops = [central_square(cut_out(image, thing), self._clip.image_size) for image, thing in chunk]
            crop_ND = self._clip.image_embeddings(crops)
            color_NKD = torch.stack([self._colors_of(thing.label) for _, thing in chunk])
            nearest_N = torch.einsum("nd,nkd->nk", crop_ND, color_NKD).argmax(-1)
            named += [self.names[index] for index in nearest_N.tolist()]
        return named

    def _colors_of(self, label: str) -> torch.Tensor:
        """(K, D): for each color the mean direction of its templates' embeddings, with length 1."""
        if label not in self._color_KD:
            assert self._clip is not None
            texts = [template.format(color=color, label=label) for color in self.names for template in TEMPLATES]
            text_KTD = self._clip.text_embeddings(texts).unflatten(0, (len(self.names), len(TEMPLATES)))
            self._color_KD[label] = torch.nn.functional.normalize(text_KTD.mean(1), dim=-1)
        return self._color_KD[label]


def cut_out(image: Image, detection: Detection) -> Image:
    """The detection's box of an image, with #999 wherever its mask is not; one gray pixel if the box has none."""
    left, top, right, bottom = (round(edge) for edge in detection.box)
    window = slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))
    crop = np.where(detection.mask[window][..., None], image[window], np.uint8(GROUND))
    return crop if crop.size else np.full((1, 1, 3), GROUND, dtype=np.uint8)


def central_square(image: Image, side: int) -> Image:
    """The middle square of an image whose shorter side is resized to ``side`` pixels, bicubic, as torchvision takes it.

    Sizes are cut to whole pixels and offsets rounded half to even. The ends of a very thin object are left off before
    it is enlarged. CLIP's image processor finds nothing left to resize or crop.
    """
    longest = LONGEST * min(image.shape[:2])
    y, x = (max(length - longest, 0) // 2 for length in image.shape[:2])
    image = np.ascontiguousarray(image[y : y + longest, x : x + longest])
    height, width = image.shape[:2]
    short = min(height, width)
    scaled_w, scaled_h = side * width // short, side * height // short
    left, top = round((scaled_w - side) / 2), round((scaled_h - side) / 2)
    scaled = Pictures.fromarray(image).resize((scaled_w, scaled_h), Pictures.Resampling.BICUBIC)
    return np.array(scaled.crop((left, top, left + side, top + side)))
