"""How different the images of one prompt are, by a CLIP's image embeddings."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_world import resolve
from trainer.config import first_line
from trainer.models.sd3 import ModelError

_BATCH = 64


class ImageEmbedder:
    """The image half of a CLIPModel directory or hub id (``tiny_world:`` paths included), in float32."""

    def __init__(self, path: str, device: torch.device) -> None:
        from transformers import CLIPImageProcessorPil, CLIPModel

        source = str(resolve(path))
        try:
            self.processor = CLIPImageProcessorPil.from_pretrained(source)
            self.model = CLIPModel.from_pretrained(source, dtype=torch.float32)
        except Exception as error:  # OSError, ValueError, SafetensorError...: absent, torn or no CLIP
            raise ModelError(f"evaluation.embedder: {path} cannot be loaded as a CLIP: {first_line(error)}") from error
        self.model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, D) embeddings of length 1 of images (H, W, 3)."""
        parts = []
        for start in range(0, len(images), _BATCH):
            pixels = self.processor(images=list(images[start : start + _BATCH]), return_tensors="pt")["pixel_values"]
            embeddings = self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
            parts.append(torch.nn.functional.normalize(embeddings, dim=-1).cpu())
        found: NDArray[np.float32] = torch.cat(parts).numpy()
        return found


def diversity(embeddings_ND: NDArray[np.floating], prompts: Sequence[str]) -> dict[str, float]:
    """For each prompt with two images or more the mean cosine distance, 1 - cos, over their pairs.

    0 means that all its images look the same to the embedder.
    """
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    found = {}
    for prompt, same in rows.items():
        n = len(same)
        if n > 1:
            # The sum of all cosines is the squared length of the sum; n of them are of an image with itself.
            total = float(np.square(embeddings_ND[same].sum(axis=0, dtype=np.float64)).sum())
            found[prompt] = 1.0 - (total - n) / (n * (n - 1))
    return found
