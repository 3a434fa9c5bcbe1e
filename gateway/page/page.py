"""What the page knows, and the one task that tells its viewers."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence

from gateway.config import PageConfig
from gateway.dispatch import Dispatcher
from gateway.page.activity import Activity
from gateway.page.hub import Hub, Viewer, event
from gateway.page.status import RewardStatus, statuses
from gateway.page.thumbnails import Thumbnail, Thumbnails
from reward_api import Item, ItemError, Outcome

TICK_S = 1.0


class Page:
    """Follows the answers of the gateway. Use inside `async with`; nothing runs while nobody looks."""

    def __init__(self, config: PageConfig, dispatchers: Mapping[str, Dispatcher]) -> None:
        self.hub = Hub(config.viewers)
        self.thumbnails = Thumbnails(config.images, self._show)
        self._dispatchers = dispatchers
        self._activities: defaultdict[str, Activity] = defaultdict(Activity)
        self._ticking: asyncio.Task[None] | None = None
        self._last: list[RewardStatus] = []

    async def __aenter__(self) -> "Page":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.hub.close()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        await self.thumbnails.aclose()

    def answered(
        self, items: Sequence[Item | ItemError], outcomes: Sequence[Mapping[str, Outcome]], latency_s: float
    ) -> None:
        """Takes note of an answered request: `outcomes[i]` of `items[i]`, after `latency_s`."""
        now = time.monotonic()
        asked: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for results in outcomes:
            for name, outcome in results.items():
                asked[name] += 1
                failed[name] += isinstance(outcome, ItemError)
        for name, count in asked.items():
            self._activities[name].answered(items=count, errors=failed[name], latency_s=latency_s, now=now)
        for item, results in zip(reversed(items), reversed(outcomes), strict=True):
            if isinstance(item, Item):
                self.thumbnails.offer(item, results)
                break

    async def watch(self, viewer: Viewer) -> AsyncGenerator[bytes, None]:
        """The events of an admitted viewer: `hello` with all there is, then `rewards` and `image` as they change."""
        yield event("hello", self._all())
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick())
        async for sent in viewer.events():
            yield sent

    def _all(self) -> dict[str, object]:
        now = time.monotonic()
        history = {name: self._activities[name].history(now) for name in self._dispatchers}
        return {
            "rewards": self._statuses(),
            "history": {name: {"items": items, "p95_s": latencies} for name, (items, latencies) in history.items()},
            "images": list(self.thumbnails.kept),
        }

    def _statuses(self) -> list[RewardStatus]:
        return statuses(self._dispatchers.values(), self._activities, time.monotonic())

    async def _tick(self) -> None:
        """Sends the rewards' state once a second where it has changed, until the last viewer has gone."""
        while self.hub.viewers:
            await asyncio.sleep(TICK_S)
            state = self._statuses()
            if state != self._last:
                self._last = state
                self.hub.publish(event("rewards", state))

    def _show(self, thumbnail: Thumbnail) -> None:
        self.hub.publish(event("image", thumbnail))
