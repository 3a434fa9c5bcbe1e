"""Whose turn it is: weighted fair shares between the clients that have something waiting.

A pure state machine. Each served item moves its client's virtual time on by 1/weight and the client that is furthest
behind is next (start-time fair queueing, Goyal, Vin and Cheng 1996). One who was away comes back at the present
virtual time: nobody saves up turns by staying away, and nobody pays for turns that no one else wanted.
"""

import heapq
from collections.abc import Iterator, Mapping


class Turns:
    """Clients that wait, and the order in which they are served. `weights` default to 1."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._waiting: dict[str, tuple[float, int]] = {}
        self._left: dict[str, float] = {}
        self._now = 0.0
        self._joined = 0

    def join(self, client: str) -> None:
        """`client` has something waiting from now on."""
        self._joined += 1
        self._left = {name: time for name, time in self._left.items() if time > self._now}
        self._waiting[client] = (max(self._now, self._left.pop(client, self._now)), self._joined)

    def leave(self, client: str) -> None:
        """`client` has nothing waiting any more."""
        self._left[client] = self._waiting.pop(client)[0]

    def served(self, client: str) -> None:
        """One item of `client` is on its way."""
        time, order = self._waiting[client]
        self._now = max(self._now, time)
        self._waiting[client] = (time + self._step(client), order)

    def ahead(self) -> Iterator["Turn"]:
        """The coming turns without taking them: a client comes again until one of its turns `ends` it."""
        heap = [(time, order, client) for client, (time, order) in self._waiting.items()]
        heapq.heapify(heap)
        while heap:
            time, order, client = heap[0]
            turn = Turn(client)
            yield turn
            if turn.over:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (time + self._step(client), order, client))

    def _step(self, client: str) -> float:
        return 1.0 / self._weights.get(client, 1.0)


class Turn:
    """One turn of `client`."""

    __slots__ = ("client", "over")

    def __init__(self, client: str) -> None:
        self.client = client
        self.over = False

    def ends(self) -> None:
        """The client gets no further turn this time."""
        self.over = True
