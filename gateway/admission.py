"""How fast a reward's queue drains, and with it when a refused client should come back.

A pure state machine: no tasks, no clients, the caller passes the time. Seconds on any monotonic clock.
"""

import math
from collections import deque


class DrainRate:
    """Items finished per second over the last `window_s`, idle time not counted.

    Only the current busy stretch is measured, because a queue that was empty had nothing to drain; until it has
    finished something, the rate of the previous stretch stands.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        self.window_s = window_s
        self._finished: deque[tuple[float, int]] = deque()
        self._busy_since: float | None = None
        self._last_rate: float | None = None

    def busy(self, now: float) -> None:
        """There is work from now on, if there was none."""
        if self._busy_since is None:
            self._busy_since = now
            self._finished.clear()

    def idle(self, now: float) -> None:
        """There is no work left."""
        self._last_rate = self.per_second(now)
        self._busy_since = None

    def finished(self, items: int, now: float) -> None:
        self._finished.append((now, items))
        while self._finished[0][0] < now - self.window_s:
            self._finished.popleft()

    def per_second(self, now: float) -> float | None:
        """Items a second, or None while nothing has been measured."""
        if self._busy_since is None:
            return self._last_rate
        start = max(self._busy_since, now - self.window_s)
        items = sum(count for time, count in self._finished if time >= start)
        if items == 0 or now <= start:
            return self._last_rate
        return items / (now - start)


WORTH = 0.75  # of the time to the deadline may pass in the queue: the batch takes time too, and rates are estimates


def hopeless_for(ahead_items: int, rate: float | None, timeout_s: float) -> float:
    """Seconds until a request would no longer wait too long to meet its deadline, 0 if it would not now.

    Without work ahead nothing is hopeless, and without a measured rate nothing is known.
    """
    if not ahead_items or rate is None or rate <= 0:
        return 0.0
    return max(0.0, ahead_items / rate - WORTH * timeout_s)


def retry_after(excess_items: float, rate: float | None, *, lowest_s: int = 1, highest_s: int = 60) -> int:
    """Whole seconds until `excess_items` have drained at `rate` items a second.

    `lowest_s` where no rate has been measured yet: the client's own back-off takes over from there.
    """
    if rate is None or rate <= 0:
        return lowest_s
    return math.ceil(min(max(excess_items / rate, lowest_s), highest_s))
