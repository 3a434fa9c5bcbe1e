import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.queue import Batch, BatchQueue, Entry

pytestmark = pytest.mark.unit

FOREVER = 1e9


def queue_of(**overrides: float) -> BatchQueue[str]:
    settings = {"max_items": 100, "max_bytes": 10_000, "max_batch": 4, "batch_bytes": 1000, "max_delay_s": 0.0}
    return BatchQueue(**(settings | overrides))


def entry(name: str = "", *, size: int = 10, arrived: float = 0.0, deadline: float = FOREVER, det: bool = False):
    return Entry(name, size, arrived, deadline, deterministic=det)


def names(batch: Batch[str] | None) -> list[str]:
    assert batch is not None
    return [e.payload for e in batch.entries]


def test_an_idle_replica_takes_what_is_there_at_once():
    queue = queue_of()
    queue.put([entry("a")])
    assert names(queue.take(0.0)[0]) == ["a"]
    assert queue.take(0.0) == (None, [])


def test_batches_leave_in_order_and_full():
    queue = queue_of()
    queue.put([entry(letter) for letter in "abcdef"])
    assert names(queue.take(0.0)[0]) == list("abcd")
    assert names(queue.take(0.0)[0]) == list("ef")


def test_the_delay_counts_from_the_oldest_entry():
    queue = queue_of(max_delay_s=1.0)
    queue.put([entry("a", arrived=0.0)])
    queue.put([entry("b", arrived=0.9)])
    assert queue.due_at() == 1.0
    assert queue.take(0.99) == (None, [])
    assert names(queue.take(1.0)[0]) == ["a", "b"]


def test_a_full_batch_does_not_wait():
    queue = queue_of(max_delay_s=1.0)
    queue.put([entry(letter) for letter in "abcd"])
    assert names(queue.take(0.0)[0]) == list("abcd")


def test_bytes_bound_the_queue_and_the_batch():
    queue = queue_of(max_bytes=2500, batch_bytes=1000)
    queue.put([entry("a", size=400), entry("b", size=600), entry("c", size=1200)])
    assert not queue.has_room(1, 400)
    assert not queue.could_ever_hold(1, 2501)
    with pytest.raises(OverflowError, match="400 bytes"):
        queue.put([entry(size=400)])
    assert names(queue.take(0.0)[0]) == ["a", "b"]
    assert names(queue.take(0.0)[0]) == ["c"]  # larger than a batch: alone
    assert queue.bytes == 0


def test_deterministic_and_other_entries_do_not_share_a_batch():
    queue = queue_of()
    queue.put([entry("a"), entry("b", det=True), entry("c", det=True), entry("d")])
    batches = [queue.take(0.0)[0] for _ in range(3)]
    assert [(names(batch), batch.deterministic) for batch in batches] == [
        (["a"], False),
        (["b", "c"], True),
        (["d"], False),
    ]


def test_dead_entries_cost_no_place_in_a_batch():
    queue = queue_of(max_batch=2)
    abandoned, late = entry("abandoned"), entry("late", deadline=1.0)
    queue.put([abandoned, entry("a"), late, entry("b"), entry("c")])
    queue.discard(abandoned)
    queue.discard(abandoned)
    assert queue.items == 4
    batch, expired = queue.take(1.0)
    assert names(batch) == ["a", "b"]
    assert expired == [late]


def test_a_failed_batch_leaves_first_and_whole():
    queue = queue_of()
    queue.put([entry("a"), entry("b")])
    batch, _ = queue.take(0.0)
    queue.put([entry("c")])
    queue.put_back(Batch(batch.entries, failures=1, suspect=True, avoid=frozenset({"x"})))
    assert queue.items == 3
    retry = queue.next_retry()
    assert retry is not None
    assert retry.avoid == {"x"}
    again, _ = queue.take(0.0)
    assert (names(again), again.failures) == (["a", "b"], 1)
    assert names(queue.take(0.0)[0]) == ["c"]


def test_what_dies_in_a_failed_batch_is_dropped_too():
    queue = queue_of()
    gone, late = entry("gone"), entry("late", deadline=5.0)
    queue.put_back(Batch([gone, late], failures=1))
    queue.discard(gone)
    assert queue.items == 1
    assert queue.take(5.0) == (None, [late])
    assert queue.next_retry() is None


class QueueLife(RuleBasedStateMachine):
    """Any sequence of arrivals, departures, failures and time: nothing lost, nothing twice, nothing dead sent."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue: BatchQueue[int] = BatchQueue(
            max_items=9, max_bytes=80, max_batch=3, batch_bytes=25, max_delay_s=2.0
        )
        self.waiting: list[Entry[int]] = []
        self.away: list[Batch[int]] = []
        self.retried = False
        self.count = 0

    @rule(
        sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
        patience=st.integers(1, 8),
        det=st.booleans(),
        client=st.sampled_from(["a", "b", "c"]),
    )
    def arrive(self, sizes: list[int], patience: int, det: bool, client: str) -> None:
        entries = []
        for size in sizes:
            self.count += 1
            deadline = self.now + patience
            entries.append(Entry(self.count, size, self.now, deadline, deterministic=det, client=client))
        if self.queue.has_room(len(entries), sum(sizes), client):
            self.queue.put(entries)
            self.waiting += entries
        else:
            with pytest.raises(OverflowError):
                self.queue.put(entries)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        live = [e for e in self.waiting if e.deadline > self.now]
        due = self.queue.due_at()
        batch, expired = self.queue.take(self.now)
        assert all(e.deadline <= self.now for e in expired)
        for dropped in expired:
            self.waiting.remove(dropped)
        if batch is None:
            assert not live or due is None or due > self.now or all(e.arrived + 2.0 > self.now for e in live)
            return
        assert due is not None
        assert due <= self.now
        assert 1 <= len(batch.entries) <= 3
        assert sum(e.size_bytes for e in batch.entries) <= 25 or len(batch.entries) == 1
        assert len({e.deterministic for e in batch.entries}) == 1
        assert all(e.deadline > self.now and not e.gone for e in batch.entries)
        if not batch.failures:
            for client in "abc":
                order = [e.payload for e in batch.entries if e.client == client]
                assert order == sorted(order)
        for sent in batch.entries:
            self.waiting.remove(sent)  # raises if it was sent twice or never queued
        self.away.append(batch)

    @precondition(lambda self: self.away)
    @rule(answered=st.booleans())
    def land(self, answered: bool) -> None:
        batch = self.away.pop(0)
        if not answered:
            self.queue.put_back(Batch(batch.entries, failures=batch.failures + 1))
            self.waiting += [e for e in batch.entries if not e.gone]

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 100))
    def hang_up(self, place: int) -> None:
        self.queue.discard(self.waiting.pop(place % len(self.waiting)))

    @invariant()
    def counts_are_exact(self) -> None:
        assert self.queue.items == len(self.waiting)
        assert self.queue.bytes == sum(e.size_bytes for e in self.waiting)
        assert sum(self.queue.clients.values()) <= self.queue.items


TestQueueLife = QueueLife.TestCase
TestQueueLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
