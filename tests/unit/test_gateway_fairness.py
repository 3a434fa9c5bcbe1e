from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fairness import Turns
from gateway.queue import BatchQueue, Entry

pytestmark = pytest.mark.unit

FOREVER = 1e9


def queue_of(weights: dict[str, float] | None = None, *, max_batch: int = 8, max_items: int = 800) -> BatchQueue[int]:
    return BatchQueue(max_items=max_items, max_bytes=10**6, max_batch=max_batch, batch_bytes=10**6, weights=weights)


def send(queue: BatchQueue[int], client: str, count: int, *, deterministic: bool = False) -> None:
    entries = [Entry(n, 1, 0.0, FOREVER, deterministic=deterministic, client=client) for n in range(count)]
    queue.put(entries)


def take(queue: BatchQueue[int]) -> Counter[str]:
    batch, _ = queue.take(0.0)
    return Counter(entry.client for entry in batch.entries) if batch else Counter()


def test_a_few_late_items_do_not_wait_behind_many():
    queue = queue_of()
    send(queue, "training", 600)
    send(queue, "evaluation", 3)
    assert take(queue) == {"training": 5, "evaluation": 3}


def test_clients_share_by_weight():
    queue = queue_of({"evaluation": 3.0})
    send(queue, "training", 300)
    send(queue, "evaluation", 300)
    served = sum((take(queue) for _ in range(10)), Counter())
    assert served == {"training": 20, "evaluation": 60}


def test_nobody_saves_up_turns_by_staying_away():
    queue = queue_of(max_batch=4)
    send(queue, "training", 400)
    for _ in range(50):
        take(queue)
    send(queue, "evaluation", 100)
    served = sum((take(queue) for _ in range(10)), Counter())
    assert served == {"training": 20, "evaluation": 20}


def test_coming_and_going_gains_nothing():
    turns = Turns({})
    turns.join("steady")
    served: Counter[str] = Counter()
    for _ in range(100):
        turns.join("hopping")
        client = next(iter(turns.ahead())).client
        turns.served(client)
        served[client] += 1
        turns.leave("hopping")
    assert abs(served["steady"] - served["hopping"]) <= 1


def test_clients_whose_items_cannot_share_a_batch_both_get_whole_batches():
    queue = queue_of(max_batch=4)
    send(queue, "training", 8)
    send(queue, "evaluation", 8, deterministic=True)
    batches = [take(queue) for _ in range(4)]
    assert batches.count({"training": 4}) == 2
    assert batches.count({"evaluation": 4}) == 2


def test_the_last_eighth_is_for_those_who_hold_little():
    queue = queue_of(max_items=80)
    send(queue, "training", 70)
    assert not queue.has_room(1, 1, "training")
    assert queue.excess(5, 1, "training") == 5
    assert queue.has_room(10, 1, "evaluation")
    send(queue, "evaluation", 6)
    assert not queue.has_room(5, 1, "evaluation")
    assert queue.has_room(4, 1, "a third")
    assert queue.could_ever_hold(70, 1)
    assert not queue.could_ever_hold(71, 1)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0]), min_size=1),
    st.integers(1, 9),
    st.integers(1, 12),
)
def test_shares_of_busy_clients_differ_by_at_most_one_turn_each(weights, max_batch, batches):
    queue = queue_of(weights, max_batch=max_batch)
    for client in weights:
        send(queue, client, 150)
    served = sum((take(queue) for _ in range(batches)), Counter())
    total = sum(served.values())
    for client, weight in weights.items():
        due = total * weight / sum(weights.values())
        assert abs(served[client] - due) <= 1 + weight * len(weights) / min(weights.values())
