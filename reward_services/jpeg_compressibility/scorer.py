"""Minus the size of an image as JPEG (Black et al., 2023, arXiv:2305.13301, section 5)."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from reward_api import Item, Score


class JpegCompressibilityScorer:
    """-(size as JPEG in kB of 1000 bytes); the prompt is not looked at. `quality` is Pillow's, 1 to 95."""

    name = "jpeg_compressibility"
    low: float | None = None
    high = 0.0
    meaning = "minus the size of the image as JPEG, in kB of 1000 bytes"
    metadata = "none"
    batch_limit = 32
    batch_invariant = True

    def __init__(self, quality: int = 95) -> None:
        if not 1 <= quality <= 95:
            raise ValueError(f"quality={quality}: must be 1 to 95")
        self.quality = quality
        self.version = f"q{quality}"

    def score(self, batch: Sequence[Item]) -> list[Score]:
        """Scores with details {"kilobytes"}."""
        sizes = [self._bytes(item) / 1000 for item in batch]
        return [Score(-size, {"kilobytes": size}) for size in sizes]

    def _bytes(self, item: Item) -> int:
        buffer = BytesIO()
        Image.fromarray(item.image).save(buffer, "JPEG", quality=self.quality)
        return buffer.tell()
