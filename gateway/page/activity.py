"""How much of one reward was answered lately and how fast, second by second.

A pure state machine: no tasks, no clients, the caller passes the time. Seconds on any monotonic clock.
"""

import math
from collections import deque
from dataclasses import dataclass, field

SECONDS_KEPT = 120
RATE_WINDOW_S = 5
LATENCY_WINDOW_S = 10
_SHORTEST_S, _GROWTH, _STEPS = 0.001, 1.15, 100  # latency classes of 15 %: 1 ms to 20 minutes


@dataclass(slots=True, eq=False)
class _Second:
    """What was answered within one second; `latencies[i]` counts the requests of latency class i."""

    number: int
    items: int = 0
    errors: int = 0
    latencies: dict[int, int] = field(default_factory=dict)


class Activity:
    """Items answered in the last two minutes. Memory is bounded whatever the traffic."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=SECONDS_KEPT)

    def answered(self, *, items: int, errors: int, latency_s: float, now: float) -> None:
        """A request with `items` items of this reward was answered, `errors` of them without a score."""
        number = math.floor(now)
        if not self._seconds or self._seconds[-1].number < number:
            self._seconds.append(_Second(number))
        second = self._seconds[-1]
        second.items += items
        second.errors += errors
        step = _class_of(latency_s)
        second.latencies[step] = second.latencies.get(step, 0) + 1

    def items_per_s(self, now: float) -> float:
        return sum(second.items for second in self._last(RATE_WINDOW_S, now)) / RATE_WINDOW_S

    def errors_per_s(self, now: float) -> float:
        return sum(second.errors for second in self._last(RATE_WINDOW_S, now)) / RATE_WINDOW_S

    def latency_s(self, quantile: float, now: float) -> float | None:
        """The `quantile` of the time to an answer, to 15 %; None where nothing was answered."""
        counts: dict[int, int] = {}
        for second in self._last(LATENCY_WINDOW_S, now):
            for step, count in second.latencies.items():
                counts[step] = counts.get(step, 0) + count
        return _quantile(counts, quantile)

    def history(self, now: float) -> tuple[list[int], list[float | None]]:
        """(items, 95th percentile of latency) for each of the last two minutes' whole seconds, oldest first."""
        seconds = {second.number: second for second in self._seconds}
        first = math.floor(now) - SECONDS_KEPT
        kept = [seconds.get(number, _Second(number)) for number in range(first, first + SECONDS_KEPT)]
        return [second.items for second in kept], [_quantile(second.latencies, 0.95) for second in kept]

    def _last(self, window_s: int, now: float) -> list[_Second]:
        """The whole seconds before the present one, which is not over yet."""
        present = math.floor(now)
        return [second for second in self._seconds if present - window_s <= second.number < present]


def _class_of(latency_s: float) -> int:
    if latency_s <= _SHORTEST_S:
        return 0
    return min(math.ceil(math.log(latency_s / _SHORTEST_S, _GROWTH)), _STEPS)


def _quantile(counts: dict[int, int], quantile: float) -> float | None:
    """The upper edge of the latency class in which the quantile lies."""
    wanted = quantile * sum(counts.values())
    seen = 0
    for step in sorted(counts):
        seen += counts[step]
        if seen >= wanted:
            return _SHORTEST_S * _GROWTH**step
    return None
