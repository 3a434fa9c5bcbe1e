"""Which replica gets the next batch, and which one rests.

A pure state machine: no tasks, no clients, the caller passes the time. Seconds on any monotonic clock.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Replica:
    """What the gateway knows of one service process."""

    url: str
    up: bool = False
    inflight_items: int = 0
    inflight_batches: int = 0
    holds_suspect: bool = False
    failures: int = 0
    ejections: int = 0
    ejected_until: float = float("-inf")
    rest_s: float = 0.0
    busy_until: float = float("-inf")
    last_used: int = 0


class ReplicaSet:
    """The replicas of one reward.

    A replica is *up* while its readiness probe says so, and *in rotation* while it is up and not ejected. Ejection
    is passive: `eject_after` failures in a row, for `eject_s` doubled with each further ejection up to
    `eject_max_s`. The last one in rotation is never ejected. Should rotation run empty all the same (the others
    were ejected and then this one went down), every replica that is up is used: panic mode.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        now: float,
        inflight_batches: int = 2,
        eject_after: int = 5,
        eject_s: float = 1.0,
        eject_max_s: float = 60.0,
    ) -> None:
        self.replicas = [Replica(url) for url in urls]
        self.inflight_batches = inflight_batches
        self.eject_after = eject_after
        self.eject_s = eject_s
        self.eject_max_s = eject_max_s
        self.none_up_since: float | None = now
        self._uses = 0

    def usable(self, now: float) -> list[Replica]:
        """The replicas in rotation, or in panic mode all that are up."""
        up = [replica for replica in self.replicas if replica.up]
        return [replica for replica in up if replica.ejected_until <= now] or up

    def pick(self, now: float, *, avoid: Collection[str] = (), idle: bool = False) -> Replica | None:
        """The replica with the fewest items in flight that has room for a batch, the longest unused among equals.

        `avoid` names replicas to leave out as long as there are others; with `idle` the replica must have nothing
        else in flight, so that a failure can be told to be this batch's own.
        """
        usable = self.usable(now)
        candidates = [replica for replica in usable if replica.url not in avoid] or usable
        room = 1 if idle else self.inflight_batches
        free = [r for r in candidates if r.inflight_batches < room and not r.holds_suspect and r.busy_until <= now]
        return min(free, key=lambda r: (r.inflight_items, r.last_used), default=None)

    def next_change(self, now: float) -> float | None:
        """When a replica that is ejected or busy comes back by itself, if one does."""
        times = [time for r in self.replicas if r.up for time in (r.ejected_until, r.busy_until) if time > now]
        return min(times, default=None)

    def started(self, replica: Replica, items: int, *, suspect: bool = False) -> None:
        """A batch of `items` is on its way to `replica`."""
        self._uses += 1
        replica.last_used = self._uses
        replica.inflight_items += items
        replica.inflight_batches += 1
        replica.holds_suspect = suspect

    def finished(self, replica: Replica, items: int) -> None:
        """The batch is back, well or not; what it says of the replica is told by the methods below."""
        replica.inflight_items -= items
        replica.inflight_batches -= 1
        replica.holds_suspect = False

    def succeeded(self, replica: Replica, now: float) -> None:
        """The replica answered. Having stayed in rotation for as long as it last rested clears its record."""
        replica.failures = 0
        if replica.ejections and now >= replica.ejected_until + replica.rest_s:
            replica.ejections = 0

    def failed(self, replica: Replica, now: float) -> bool:
        """The replica failed a batch. Returns whether that ejects it."""
        replica.failures += 1
        others = [r for r in self.replicas if r is not replica and r.up and r.ejected_until <= now]
        if replica.failures < self.eject_after or not others or replica.ejected_until > now:
            return False
        replica.rest_s = min(self.eject_s * 2.0**replica.ejections, self.eject_max_s)
        replica.ejected_until = now + replica.rest_s
        replica.ejections += 1
        replica.failures = 0
        return True

    def busy(self, replica: Replica, until: float) -> None:
        """The replica asked to be left alone for a while; that is no failure."""
        replica.busy_until = max(replica.busy_until, until)

    def probed(self, replica: Replica, up: bool, now: float) -> None:
        """A probe, or a refused connection, has told whether the replica takes requests."""
        replica.up = up
        if any(r.up for r in self.replicas):
            self.none_up_since = None
        elif self.none_up_since is None:
            self.none_up_since = now

    def gone_for(self, now: float) -> float | None:
        """Seconds since the last replica went down, or None while one is up."""
        return None if self.none_up_since is None else now - self.none_up_since
