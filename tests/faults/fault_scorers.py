"""Scorers for the fault tests: the score is computed from all pixels, 5 ms and 1 ms an image, sleeping."""

import os
import signal
import time
import zlib
from collections.abc import Sequence

from reward_api import Item

POISON = "poison"


class Fake:
    """`slow` multiplies the time; an item whose prompt is POISON kills the process."""

    name, version, batch_invariant = "fake", "1", True

    def __init__(self, slow: float = 1.0) -> None:
        self.slow = slow

    def score(self, batch: Sequence[Item]) -> list[float]:
        time.sleep(self.slow * (0.005 + 0.001 * len(batch)))
        if any(item.prompt == POISON for item in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return [float(zlib.crc32(item.image.tobytes())) for item in batch]
