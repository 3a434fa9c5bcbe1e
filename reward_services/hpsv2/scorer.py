"""Human Preference Score v2 (Wu et al., 2023, arXiv:2306.09341): cosine in a CLIP ViT-H/14 tuned on choices."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_api import Item, Score
from reward_services.clip import CLIP_H, Clip, ClipScorer, load_processor, prepared
from reward_services.hpsv2.open_clip import clip_model
from reward_services.weights import fetch_file, read_tensors


class HpsV2Scorer(ClipScorer):
    """Scores with the published checkpoint of HPS v2.1 (default) or v2.0.

    `model` is that checkpoint as a file, or ORGANISATION/REPOSITORY/FILE of the hub.
    """

    name = "hpsv2"
    low, high = -1.0, 1.0
    meaning = "cosine of image and text embedding; HPS v2.1 gives about .2 to .35"
    default_model = "xswu/HPSv2/HPS_v2.1_compressed.pt"
    fallback_processor = CLIP_H

    def score(self, batch: Sequence[Item]) -> list[Score]:
        """Cosines."""
        images = [letterboxed(item.image, self.clip.image_size) for item in batch]
        return [Score(cosine) for cosine in self.clip.cosines(images, [item.prompt for item in batch]).tolist()]

    def _load_clip(self) -> Clip:
        model = clip_model(read_tensors(fetch_file(self.model)))
        return prepared(
            model, *load_processor(self.processor or self.fallback_processor), device=self.device, dtype=self.dtype
        )


def letterboxed(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(side, side, 3): the whole image, its longer side resized to `side`, black beside it. HPS crops nothing."""
    height, width, _ = image.shape
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", (side, side))
    place = (side - size[0]) // 2, (side - size[1]) // 2
    canvas.paste(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), place)
    return np.asarray(canvas)
