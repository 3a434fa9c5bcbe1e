"""Weights for mmdet's Mask2Former drawn from a seed, the same on every machine."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch


def drawn_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """A state dict of these shapes. No parameter stays at a value, such as 1 or 0, that would hide a confusion.

    Each is keyed by its name. Queries and classes differ enough for confident detections, and offsets of the deformable
    attention reach over neighbouring pixels.
    """
    state = {}
    for name, shape in shapes.items():
        if name.endswith("relative_position_index"):
            continue
        noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        state[name] = torch.from_numpy(_scaled(name, noise).astype(np.float32))
    return state


def _scaled(name: str, noise: np.ndarray) -> np.ndarray:
    if noise.ndim == 1:
        is_norm = name.endswith(".weight")
        return 1 + 0.2 * noise if is_norm else (1.0 if "sampling_offsets" in name else 0.1) * noise
    if "position_bias" in name or "embed.weight" in name and "cls" not in name or "query_feat" in name:
        return 0.5 * noise
    fan_in = float(np.prod(noise.shape[1:]))
    gain = 6.0 if "cls_embed" in name else 1.0
    return gain * noise / fan_in**0.5
