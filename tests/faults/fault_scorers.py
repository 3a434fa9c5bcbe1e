"""Scorers for the fault tests: the score is computed from all pixels, 5 ms and 1 ms an image, sleeping."""

import os
import signal
import time
import zlib
from collections.abc import Sequence

from reward_api import Item

POISON = "poison"
STALL_S = 60.0


class Fake:
    """`slow` multiplies the time, the `stall_at`th batch stalls; an item whose prompt is POISON kills the process."""

    name, version, batch_invariant = "fake", "1", True

    def __init__(self, slow: float = 1.0, stall_at: int = 0) -> None:
        self.slow = slow
        self.stall_at = stall_at
        self.batches = 0

    def score(self, batch: Sequence[Item]) -> list[float]:
        self.batches += 1
        time.sleep(STALL_S if self.batches == self.stall_at else self.slow * (0.005 + 0.001 * len(batch)))
        if any(item.prompt == POISON for item in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return [float(zlib.crc32(item.image.tobytes())) for item in batch]
