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
    version: str = ""
    misses: int = 0
    retiring: bool = False
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

    A replica that has just missed a probe gets new batches only when no other has room; after `probe_misses` in a
    row it is down. One that is no longer listed is *retiring*: it finishes what it has and is then forgotten.
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
        probe_misses: int = 3,
    ) -> None:
        self.replicas = [Replica(url) for url in urls]
        self.inflight_batches = inflight_batches
        self.eject_after = eject_after
        self.eject_s = eject_s
        self.eject_max_s = eject_max_s
        self.probe_misses = probe_misses
        self.none_up_since: float | None = now
        self._uses = 0

    @property
    def listed(self) -> list[Replica]:
        """The replicas that are not on their way out."""
        return [replica for replica in self.replicas if not replica.retiring]

    def usable(self, now: float) -> list[Replica]:
        """The replicas in rotation, or in panic mode all that are up."""
        up = [replica for replica in self.listed if replica.up]
        return [replica for replica in up if replica.ejected_until <= now] or up

    def pick(
        self, now: float, *, avoid: Collection[str] = (), idle: bool = False, strict: bool = False
    ) -> Replica | None:
        """The replica with the fewest items in flight that has room for a batch.

        Among idle ones it is the one used last, whose caches are warm, unless it has just failed; among equally busy
        ones the one whose work began first.

        `avoid` names replicas to leave out as long as there are others, with `strict` in any case; with `idle` the
        replica must have nothing else in flight, so that a failure can be told to be this batch's own.
        """
        usable = self.usable(now)
        others = [replica for replica in usable if replica.url not in avoid]
        candidates = others if others or strict else usable
        room = 1 if idle else self.inflight_batches
        free = [r for r in candidates if r.inflight_batches < room and not r.holds_suspect and r.busy_until <= now]

        def rank(r: Replica) -> tuple[bool, int, bool, int]:
            return r.misses > 0, r.inflight_items, r.failures > 0, r.last_used if r.inflight_batches else -r.last_used

        return min(free, key=rank, default=None)

    def idle(self, now: float) -> int:
        """How many replicas have nothing to do and would take a batch."""
        return sum(not r.inflight_batches and r.busy_until <= now for r in self.usable(now))

    def next_change(self, now: float) -> float | None:
        """When a replica that is ejected or busy comes back by itself, if one does."""
        times = [time for r in self.listed if r.up for time in (r.ejected_until, r.busy_until) if time > now]
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
        others = [r for r in self.listed if r is not replica and r.up and r.ejected_until <= now]
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
        replica.misses = 0
        self._note_presence(now)

    def missed(self, replica: Replica, now: float) -> bool:
        """A probe got no answer in time. Returns whether that was one too many: the replica is down then."""
        replica.misses += 1
        if replica.misses < self.probe_misses:
            return False
        replica.up = False
        self._note_presence(now)
        return True

    def list_only(self, urls: Sequence[str], now: float) -> list[Replica]:
        """From now on these are the replicas. Returns the new ones; those no longer named retire."""
        known = {replica.url: replica for replica in self.replicas}
        added = [Replica(url) for url in urls if url not in known]
        for replica in self.replicas:
            replica.retiring = replica.url not in urls
        self.replicas += added
        self._note_presence(now)
        return added

    def forget_retired(self) -> list[Replica]:
        """Drops the retiring replicas that have finished, and returns them."""
        done = [replica for replica in self.replicas if replica.retiring and not replica.inflight_batches]
        if done:
            self.replicas = [replica for replica in self.replicas if replica not in done]
        return done

    def gone_for(self, now: float) -> float | None:
        """Seconds since the last replica went down, or None while one is up."""
        return None if self.none_up_since is None else now - self.none_up_since

    def _note_presence(self, now: float) -> None:
        if any(replica.up for replica in self.listed):
            self.none_up_since = None
        elif self.none_up_since is None:
            self.none_up_since = now
