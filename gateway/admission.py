"""How fast a reward's queue drains, and with it when a refused client should come back.

A pure state machine: no tasks, no clients, the caller passes the time. Seconds on any monotonic clock.
"""

import math

TELLING = 4  # batches after which a rate is worth something


class DrainRate:
    """Items finished per second while the replicas are loaded, averaged over about the last `memory_s` of such time.

    Loaded means that a whole batch waits for them. Only then do they show how fast a queue drains: with less to do
    they are idle in between, and what they get comes in small batches, which cost more for an item.
    """

    def __init__(self, memory_s: float = 10.0) -> None:
        self.memory_s = memory_s
        self._items = 0.0
        self._seconds = 0.0
        self._batches = 0
        self._loaded_at: float | None = None

    def loaded(self, loaded: bool, now: float) -> None:
        """Whether the replicas are loaded from now on."""
        self._advance(now)
        self._loaded_at = now if loaded else None

    def finished(self, items: int, now: float) -> None:
        """A batch of `items` is done. It counts if the replicas are loaded."""
        if self._loaded_at is None:
            return
        self._advance(now)
        self._items += items
        self._batches += 1

    def per_second(self, now: float) -> float | None:
        """Items a second, or None until enough has been measured."""
        self._advance(now)
        return self._items / self._seconds if self._batches >= TELLING and self._seconds > 0 else None

    def _advance(self, now: float) -> None:
        """Both sums fade alike, so that their quotient is a mean with exponential weights."""
        if self._loaded_at is None:
            return
        kept = math.exp((self._loaded_at - now) / self.memory_s)
        self._items *= kept
        self._seconds = self._seconds * kept + self.memory_s * (1 - kept)
        self._loaded_at = now


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
