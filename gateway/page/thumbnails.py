"""The last scored images, small, with what they scored. In memory only."""

import asyncio
import base64
import io
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_api import Item, ItemError, Outcome

logger = logging.getLogger(__name__)

EDGE_PIXELS = 112
PROMPT_CHARS = 160
PAUSE_S = 0.5  # a sample is enough to look at, and shrinking costs about a millisecond


@dataclass(frozen=True, slots=True)
class Result:
    """What one reward said: a score, or the code of an error."""

    reward: str
    score: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small WebP image as base64 with its prompt and results; `number` grows by one with each."""

    number: int
    webp: str
    width: int
    height: int
    prompt: str
    results: list[Result]


class Thumbnails:
    """A ring of the last `limit` thumbnails; with a limit of 0 no image is ever looked at.

    At most one image is shrunk at a time, on a thread, and at most one every `pause_s`; others are passed over.
    """

    def __init__(
        self,
        limit: int,
        made: Callable[[Thumbnail], None],
        *,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kept: deque[Thumbnail] = deque(maxlen=limit)
        self._limit = limit
        self._made = made
        self._pause_s = pause_s
        self._clock = clock
        self._next = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._count = 0

    def offer(self, item: Item, results: Mapping[str, Outcome]) -> None:
        """Takes `item` into the ring, if it is time for another one."""
        now = self._clock()
        if self._limit == 0 or now < self._next or self._task is not None:
            return
        self._next = now + self._pause_s
        self._task = asyncio.create_task(self._take(item, dict(results)))
        self._task.add_done_callback(self._taken)

    async def aclose(self) -> None:
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _take(self, item: Item, results: Mapping[str, Outcome]) -> None:
        webp = await asyncio.to_thread(shrink, item.image)
        self._count += 1
        height, width = item.image.shape[:2]
        listed = [
            Result(name, error=one.code) if isinstance(one, ItemError) else Result(name, score=one.score)
            for name, one in results.items()
        ]
        thumbnail = Thumbnail(
            self._count, base64.b64encode(webp).decode(), width, height, _cut(item.prompt, PROMPT_CHARS), listed
        )
        self.kept.append(thumbnail)
        self._made(thumbnail)

    def _taken(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            logger.warning("no thumbnail: %s", fault)


def shrink(image: NDArray[np.uint8]) -> bytes:
    """A WebP file of `image` (H, W, 3), its longer edge at most EDGE_PIXELS."""
    small = Image.fromarray(image)
    small.thumbnail((EDGE_PIXELS, EDGE_PIXELS), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80, method=0)
    return buffer.getvalue()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
