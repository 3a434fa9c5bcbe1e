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
        if name.endswith(".weight"):  # of a norm
            return 1 + 0.2 * noise
        wide = {"sampling_offsets.bias": 1.0, "mask_feature.bias": 3.0}
        return next((width for end, width in wide.items() if name.endswith(end)), 0.1) * noise
    if any(word in name for word in ("position_bias", "query_embed", "query_feat", "level_embed", "level_encoding")):
        return 0.5 * noise
    fan_in = float(np.prod(noise.shape[1:]))
    return _gain(name, fan_in) * noise / fan_in**0.5


def _gain(name: str, fan_in: float) -> float:
    """A query stays itself through the decoder, and different queries give different classes and masks.

    Logits stay in the tens whatever the width, where float32 resolves less than the tolerance of 1e-4.
    """
    if "cls_embed" in name:
        return 4.0
    if "mask_embed.4" in name:
        return 4 / fan_in**0.5
    if "mask_embed" in name:
        return 1.5
    return 0.3 if "transformer_decoder" in name and ("out_proj" in name or "ffn.layers.1" in name) else 1.0
