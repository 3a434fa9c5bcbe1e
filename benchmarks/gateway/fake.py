"""The scorer of all systems: it sleeps, and its score is computed from the id in an image's pixels.

Only numpy and the standard library, so that every system's own environment can import it.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 256
IMAGE_BYTES = SIDE * SIDE * 3
_MASK = 0x5A5A5A


def picture(number: int) -> NDArray[np.uint8]:
    """(256, 256, 3) uint8 with `number` in the first and in the last pixel."""
    pixels = np.full((SIDE, SIDE, 3), number % 251, np.uint8)
    pixels[0, 0] = pixels[-1, -1] = number % 256, number // 256 % 256, number // 65536 % 256
    return pixels


def right_score(number: int) -> float:
    return float(number % 2**24 ^ _MASK)


def score_of(pixels: NDArray[np.uint8]) -> float:
    """`right_score` of the picture's number, or -1 for a picture that did not arrive whole."""
    flat = pixels.reshape(-1)
    if flat.size != IMAGE_BYTES or not np.array_equal(flat[:3], flat[-3:]):
        return -1.0
    low, middle, high = map(int, flat[:3])
    return right_score(low + 256 * middle + 65536 * high)


def seconds(count: int, base_ms: float, item_ms: float) -> float:
    """How long a batch of `count` takes."""
    return (base_ms + item_ms * count) / 1000


def score_batch(batch: Sequence[NDArray[np.uint8]], base_ms: float, item_ms: float) -> list[float]:
    time.sleep(seconds(len(batch), base_ms, item_ms))
    return [score_of(pixels) for pixels in batch]


def cost_from_environment() -> tuple[float, float]:
    """(base_ms, item_ms) for servers that take no arguments."""
    return float(os.environ["BENCH_BASE_MS"]), float(os.environ["BENCH_ITEM_MS"])


class Fake:
    """The scorer as `flow-grpo serve` takes it."""

    version, batch_limit, batch_invariant = "1", 16, True

    def __init__(self, name: str = "fake", base_ms: float = 5.0, item_ms: float = 1.0) -> None:
        self.name = name
        self.base_ms = base_ms
        self.item_ms = item_ms

    def score(self, batch: Sequence[Any]) -> list[float]:
        return score_batch([item.image for item in batch], self.base_ms, self.item_ms)
