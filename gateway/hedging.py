"""When a batch is late enough to be sent a second time, and how often that may happen.

A pure state machine: the caller passes durations. After "The Tail at Scale" (Dean and Barroso 2013): the second try
starts once the first is older than nearly all batches of its size, and what is sent twice is a small share of the
whole.
"""

import math
from collections import deque

LEAST_KNOWN = 20  # durations of a size before its 95th percentile means anything
MEMORY = 200  # durations kept of a size


class Hedging:
    """Durations of batches by their size, and the budget of second tries: `extra` times the items sent."""

    def __init__(self, *, extra: float = 0.05, quantile: float = 0.95) -> None:
        self.extra = extra
        self.quantile = quantile
        self._durations: dict[int, deque[float]] = {}
        self._sent = 0.0
        self._twice = 0.0

    def sent(self, items: int) -> None:
        """A batch has left for the first time."""
        self._sent += items
        if self._sent > 100_000:  # old times count less and less
            self._sent, self._twice = self._sent / 2, self._twice / 2

    def took(self, items: int, seconds: float) -> None:
        """A batch of this size came back after `seconds`, or was no longer waited for after so long."""
        self._durations.setdefault(_size_class(items), deque(maxlen=MEMORY)).append(seconds)

    def patience_s(self, items: int) -> float | None:
        """How old a batch of this size is when it counts as late; None while too little is known."""
        known = self._durations.get(_size_class(items), ())
        if len(known) < LEAST_KNOWN:
            return None
        return sorted(known)[math.ceil(self.quantile * len(known)) - 1]

    def allows(self, items: int) -> bool:
        """Whether sending so many items again stays within the budget."""
        return self._twice + items <= self.extra * self._sent

    def sent_again(self, items: int) -> None:
        self._twice += items


def _size_class(items: int) -> int:
    """Sizes up to a factor of two apart share their durations."""
    return items.bit_length()
