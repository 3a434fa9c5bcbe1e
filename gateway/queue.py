"""The queue of one reward: bounded in items and in bytes, and the rule by which batches leave it.

A pure state machine: no tasks, no clients, the caller passes the time. Seconds on any monotonic clock.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

P = TypeVar("P")


@dataclass(slots=True, eq=False)
class Entry(Generic[P]):
    """One item waiting for one reward. `deadline` is a point in time, not a duration."""

    payload: P
    size_bytes: int
    arrived: float
    deadline: float
    deterministic: bool = False
    gone: bool = field(default=False, init=False)


@dataclass(slots=True, eq=False)
class Batch(Generic[P]):
    """Entries that travel together. A batch that has failed is a suspect: it travels alone, and not to `avoid`."""

    entries: list[Entry[P]]
    failures: int = 0
    suspect: bool = False
    avoid: frozenset[str] = frozenset()

    @property
    def deterministic(self) -> bool:
        return self.entries[0].deterministic

    @property
    def deadline(self) -> float:
        """The time after which nobody waits for any of it."""
        return max(entry.deadline for entry in self.entries)


class BatchQueue(Generic[P]):
    """First in, first out; a batch is a prefix of the queue with one `deterministic` flag.

    A batch may leave when it is full or when its oldest entry has waited `max_delay_s`; with the default delay of 0
    whatever is queued may leave at once, so entries gather only while every replica is busy. Batches that come back
    from a failed replica leave first and are not counted against the bounds on the way in: they were admitted before.
    """

    def __init__(
        self, *, max_items: int, max_bytes: int, max_batch: int, batch_bytes: int, max_delay_s: float = 0.0
    ) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.max_batch = max_batch
        self.batch_bytes = batch_bytes
        self.max_delay_s = max_delay_s
        self._waiting: OrderedDict[Entry[P], None] = OrderedDict()
        self._waiting_bytes = 0
        self._retries: deque[Batch[P]] = deque()

    @property
    def items(self) -> int:
        return len(self._waiting) + sum(not entry.gone for batch in self._retries for entry in batch.entries)

    @property
    def bytes(self) -> int:
        retried = sum(e.size_bytes for batch in self._retries for e in batch.entries if not e.gone)
        return self._waiting_bytes + retried

    def could_ever_hold(self, items: int, size_bytes: int) -> bool:
        """Whether an empty queue would have room for this much."""
        return items <= self.max_items and size_bytes <= self.max_bytes

    def has_room(self, items: int, size_bytes: int) -> bool:
        return self.could_ever_hold(self.items + items, self.bytes + size_bytes)

    def put(self, entries: Sequence[Entry[P]]) -> None:
        """Adds entries that arrive together, all of them.

        Raises OverflowError when there is no room: ask `has_room` before.
        """
        size_bytes = sum(entry.size_bytes for entry in entries)
        if not self.has_room(len(entries), size_bytes):
            raise OverflowError(f"queue has no room for {len(entries)} items of {size_bytes} bytes")
        self._waiting.update((entry, None) for entry in entries)
        self._waiting_bytes += size_bytes

    def put_back(self, batch: Batch[P]) -> None:
        """Queues a batch again, as it is, before everything that waits."""
        self._retries.append(batch)

    def discard(self, entry: Entry[P]) -> None:
        """Drops an entry nobody waits for any more and frees its place. Harmless when it has left already."""
        entry.gone = True
        if entry in self._waiting:
            del self._waiting[entry]
            self._waiting_bytes -= entry.size_bytes

    def next_retry(self) -> Batch[P] | None:
        """The failed batch that leaves next, if there is one: it decides which replica may be used."""
        while self._retries and all(entry.gone for entry in self._retries[0].entries):
            self._retries.popleft()
        return self._retries[0] if self._retries else None

    def due_at(self) -> float | None:
        """When the next batch may leave (perhaps in the past), or None while the queue is empty."""
        if (retry := self.next_retry()) is not None:
            return retry.entries[0].arrived
        if not self._waiting:
            return None
        oldest = next(iter(self._waiting))
        if self.max_delay_s == 0 or self._full():
            return oldest.arrived
        return oldest.arrived + self.max_delay_s

    def take(self, now: float) -> tuple[Batch[P] | None, list[Entry[P]]]:
        """Forms the next batch, if one is due. Returns it with the entries dropped for having passed their deadline."""
        expired: list[Entry[P]] = []
        while (due := self.due_at()) is not None and due <= now:
            batch = self._retries.popleft() if self._retries else self._form(now, expired)
            expired += [entry for entry in batch.entries if not entry.gone and entry.deadline <= now]
            batch.entries = [entry for entry in batch.entries if not entry.gone and entry.deadline > now]
            if batch.entries:
                return batch, expired
        return None, expired

    def drain(self) -> list[Entry[P]]:
        """Empties the queue and returns what was in it."""
        entries = [entry for batch in self._retries for entry in batch.entries if not entry.gone]
        entries += self._waiting
        self._retries.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        return entries

    def _full(self) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        oldest = next(iter(self._waiting))
        size_bytes = 0
        for count, entry in enumerate(self._waiting, start=1):
            size_bytes += entry.size_bytes
            if count == self.max_batch or size_bytes >= self.batch_bytes:
                return True
            if entry.deterministic != oldest.deterministic:
                return True
        return False

    def _form(self, now: float, expired: list[Entry[P]]) -> Batch[P]:
        """Takes the oldest entries that fit into one batch; an entry larger than a whole batch travels alone."""
        entries: list[Entry[P]] = []
        size_bytes = 0
        while self._waiting and len(entries) < self.max_batch:
            entry = next(iter(self._waiting))
            if entry.deadline > now:
                size_bytes += entry.size_bytes
                if entries and (size_bytes > self.batch_bytes or entry.deterministic != entries[0].deterministic):
                    break
                entries.append(entry)
            else:
                expired.append(entry)
            del self._waiting[entry]
            self._waiting_bytes -= entry.size_bytes
        return Batch(entries)
