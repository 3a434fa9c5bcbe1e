"""The queue of one reward: bounded in items and in bytes, shared fairly, and the rule by which batches leave it.

A pure state machine: no tasks, no clients, the caller passes the time. Seconds on any monotonic clock.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gateway.fairness import Turns

P = TypeVar("P")

RESERVED = 1 / 8  # of the queue; only clients that hold little get into it


@dataclass(slots=True, eq=False)
class Entry(Generic[P]):
    """One item waiting for one reward. `deadline` is a point in time, not a duration."""

    payload: P
    size_bytes: int
    arrived: float
    deadline: float
    deterministic: bool = False
    client: str = ""
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


@dataclass(slots=True)
class _Draft(Generic[P]):
    """What the next batch would be, and whether waiting longer could not make it larger."""

    entries: list[Entry[P]]
    expired: list[Entry[P]]
    full: bool


class BatchQueue(Generic[P]):
    """First in, first out for each client; clients take turns, by weight, within each batch.

    A batch may leave when it is full or when the oldest entry has waited `max_delay_s`; with the default delay of 0
    whatever is queued may leave at once, so entries gather only while every replica is busy. A batch has one
    `deterministic` flag. Batches that come back from a failed replica leave first and are not counted against the
    bounds on the way in: they were admitted before.

    The last eighth of the bounds is kept for clients that hold less than an eighth themselves, so that one that
    fills the queue does not lock the others out.
    """

    def __init__(
        self,
        *,
        max_items: int,
        max_bytes: int,
        max_batch: int,
        batch_bytes: int,
        max_delay_s: float = 0.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.max_batch = max_batch
        self.batch_bytes = batch_bytes
        self.max_delay_s = max_delay_s
        self._turns = Turns(weights or {})
        self._lines: dict[str, dict[Entry[P], None]] = {}
        self._line_bytes: dict[str, int] = {}
        self._waiting = 0
        self._waiting_bytes = 0
        self._retries: deque[Batch[P]] = deque()

    @property
    def items(self) -> int:
        return self._waiting + sum(not entry.gone for batch in self._retries for entry in batch.entries)

    @property
    def bytes(self) -> int:
        retried = sum(e.size_bytes for batch in self._retries for e in batch.entries if not e.gone)
        return self._waiting_bytes + retried

    @property
    def clients(self) -> dict[str, int]:
        """Client -> how many of its items wait."""
        return {client: len(line) for client, line in self._lines.items()}

    def could_ever_hold(self, items: int, size_bytes: int) -> bool:
        """Whether an empty queue would have room for this much."""
        return items <= _common(self.max_items) and size_bytes <= _common(self.max_bytes)

    def excess(self, items: int, size_bytes: int, client: str = "") -> float:
        """How many items must leave before this much of `client` fits; 0 if there is room now."""
        more_items = _excess(self.max_items, self.items, len(self._lines.get(client, ())), items)
        held = self.bytes
        more_bytes = _excess(self.max_bytes, held, self._line_bytes.get(client, 0), size_bytes)
        return max(more_items, more_bytes * self.items / max(held, 1))

    def has_room(self, items: int, size_bytes: int, client: str = "") -> bool:
        return self.excess(items, size_bytes, client) <= 0

    def ahead_of(self, client: str) -> int:
        """How many items leave before the next one of `client` would, if all weights are equal."""
        own = len(self._lines.get(client, ()))
        retried = self.items - self._waiting
        return retried + sum(min(len(line), own + 1) for name, line in self._lines.items() if name != client) + own

    def put(self, entries: Sequence[Entry[P]]) -> None:
        """Adds entries that one client sends together, all of them.

        Raises OverflowError when there is no room: ask `has_room` before.
        """
        if not entries:
            return
        size_bytes = sum(entry.size_bytes for entry in entries)
        client = entries[0].client
        if not self.has_room(len(entries), size_bytes, client):
            raise OverflowError(f"queue has no room for {len(entries)} items of {size_bytes} bytes")
        if client not in self._lines:
            self._lines[client] = {}
            self._line_bytes[client] = 0
            self._turns.join(client)
        self._lines[client].update((entry, None) for entry in entries)
        self._line_bytes[client] += size_bytes
        self._waiting += len(entries)
        self._waiting_bytes += size_bytes

    def put_back(self, batch: Batch[P]) -> None:
        """Queues a batch again, as it is, before everything that waits."""
        self._retries.append(batch)

    def discard(self, entry: Entry[P]) -> None:
        """Drops an entry nobody waits for any more and frees its place. Harmless when it has left already."""
        entry.gone = True
        if entry in self._lines.get(entry.client, ()):
            self._remove(entry)

    def next_retry(self) -> Batch[P] | None:
        """The failed batch that leaves next, if there is one: it decides which replica may be used."""
        while self._retries and all(entry.gone for entry in self._retries[0].entries):
            self._retries.popleft()
        return self._retries[0] if self._retries else None

    def due_at(self) -> float | None:
        """When the next batch may leave (perhaps in the past), or None while the queue is empty."""
        if (retry := self.next_retry()) is not None:
            return retry.entries[0].arrived
        if not self._lines:
            return None
        oldest = min(next(iter(line)).arrived for line in self._lines.values())
        if self.max_delay_s == 0 or self.full:
            return oldest
        return oldest + self.max_delay_s

    @property
    def full(self) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        return bool(self._retries) or self._draft(float("-inf"), self.max_batch).full

    def take(self, now: float, most: int | None = None) -> tuple[Batch[P] | None, list[Entry[P]]]:
        """Forms the next batch, if one is due. Returns it with the entries dropped for having passed their deadline.

        A fresh one holds at most `most` entries; one that comes back leaves as it is.
        """
        limit = self.max_batch if most is None else min(most, self.max_batch)
        expired: list[Entry[P]] = []
        while (due := self.due_at()) is not None and due <= now:
            batch = self._retries.popleft() if self._retries else self._form(now, expired, limit)
            expired += [entry for entry in batch.entries if not entry.gone and entry.deadline <= now]
            batch.entries = [entry for entry in batch.entries if not entry.gone and entry.deadline > now]
            if batch.entries:
                return batch, expired
        return None, expired

    def drain(self) -> list[Entry[P]]:
        """Empties the queue and returns what was in it."""
        entries = [entry for batch in self._retries for entry in batch.entries if not entry.gone]
        waiting = [entry for line in self._lines.values() for entry in line]
        self._retries.clear()
        for entry in waiting:
            self._remove(entry)
        return entries + waiting

    def _form(self, now: float, expired: list[Entry[P]], limit: int) -> Batch[P]:
        draft = self._draft(now, limit)
        for entry in draft.expired:
            self._remove(entry)
        for entry in draft.entries:
            self._turns.served(entry.client)
            self._remove(entry)
        expired += draft.expired
        return Batch(draft.entries)

    def _draft(self, now: float, limit: int) -> _Draft[P]:
        """The next entries in turn that fit into a batch of `limit`; an entry larger than a whole batch travels alone.

        Who has passed the deadline costs no turn. A client whose next entry has the other `deterministic` flag keeps
        its turn for a later batch.
        """
        entries: list[Entry[P]] = []
        expired: list[Entry[P]] = []
        size_bytes = 0
        mixed = False
        lines = {client: iter(line) for client, line in self._lines.items()}
        for turn in self._turns.ahead():
            entry = _next_alive(lines[turn.client], now, expired)
            if entry is None or (entries and entry.deterministic != entries[0].deterministic):
                mixed = mixed or entry is not None
                turn.ends()
                continue
            if entries and size_bytes + entry.size_bytes > self.batch_bytes:
                return _Draft(entries, expired, full=True)
            entries.append(entry)
            size_bytes += entry.size_bytes
            if len(entries) == limit or size_bytes >= self.batch_bytes:
                return _Draft(entries, expired, full=True)
        return _Draft(entries, expired, full=mixed)

    def _remove(self, entry: Entry[P]) -> None:
        line = self._lines[entry.client]
        del line[entry]
        self._line_bytes[entry.client] -= entry.size_bytes
        self._waiting -= 1
        self._waiting_bytes -= entry.size_bytes
        if not line:
            del self._lines[entry.client], self._line_bytes[entry.client]
            self._turns.leave(entry.client)


def _next_alive(line: Iterator[Entry[P]], now: float, expired: list[Entry[P]]) -> Entry[P] | None:
    for entry in line:
        if entry.deadline > now:
            return entry
        expired.append(entry)
    return None


def _common(bound: int) -> int:
    """The part of a bound that is open to everybody."""
    return bound - int(bound * RESERVED)


def _excess(bound: int, held: int, own: int, more: int) -> int:
    """By how much `more` is too much for a client that holds `own` of the `held`; 0 or less if it fits."""
    small = own + more <= int(bound * RESERVED)
    return held + more - (bound if small else _common(bound))
