"""The owner thread: order, batches, poison, deadlines, a bounded queue."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from reward_api import Item, ItemError, Outcome, Score
from reward_services.metrics import ServiceMetrics
from reward_services.scoring import QueueFull, ScorerThread, info_of, score_batch

pytestmark = pytest.mark.unit


class Echo:
    """Scores an image by its first byte and remembers the batches it saw; can be held at a gate."""

    name = "echo"
    version = "1"
    batch_limit = 4

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def score(self, batch: Sequence[Item]) -> Sequence[Outcome | float]:
        self.entered.set()
        assert self.gate.wait(5)
        self.threads.add(threading.get_ident())
        values = [int(item.image[0, 0, 0]) for item in batch]
        self.batches.append(values)
        if 13 in values:
            raise RuntimeError("thirteen")
        return [float(value) for value in values]


def item(value: int) -> Item:
    return Item(np.full((2, 2, 3), value, np.uint8), "a prompt")


def results(futures: Sequence[Future[Outcome]]) -> list[Outcome]:
    return [future.result(timeout=5) for future in futures]


@contextmanager
def running(scorer: Any, **options: Any) -> Iterator[ScorerThread]:
    thread = ScorerThread(scorer, ServiceMetrics(), **options)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()


def test_results_are_in_order_and_one_thread_owns_the_scorer() -> None:
    scorer = Echo()
    with running(scorer) as thread:
        futures = thread.submit([item(v) for v in range(10)], deterministic=False)
        assert results(futures) == [Score(float(v)) for v in range(10)]
    assert scorer.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(scorer.threads) == 1
    assert threading.get_ident() not in scorer.threads


def test_items_of_several_requests_gather_while_the_scorer_is_busy() -> None:
    scorer = Echo()
    scorer.gate.clear()
    with running(scorer) as thread:
        first = thread.submit([item(0)], deterministic=False)
        assert scorer.entered.wait(5)
        rest = [thread.submit([item(v)], deterministic=False) for v in (1, 2, 3)]
        scorer.gate.set()
        results(first)
        for futures in rest:
            results(futures)
    assert scorer.batches == [[0], [1, 2, 3]]


def test_deterministic_items_are_scored_alone() -> None:
    scorer = Echo()
    with running(scorer) as thread:
        results(thread.submit([item(v) for v in range(3)], deterministic=True))
    assert scorer.batches == [[0], [1], [2]]


def test_a_batch_invariant_scorer_keeps_its_batches() -> None:
    scorer = Echo()
    scorer.batch_invariant = True  # type: ignore[attr-defined]
    with running(scorer) as thread:
        results(thread.submit([item(v) for v in range(3)], deterministic=True))
    assert scorer.batches == [[0, 1, 2]]


def test_a_poison_item_fails_alone() -> None:
    with running(Echo()) as thread:
        outcomes = results(thread.submit([item(v) for v in (1, 13, 2)], deterministic=False))
    assert outcomes[0] == Score(1.0)
    assert outcomes[2] == Score(2.0)
    assert isinstance(outcomes[1], ItemError)
    assert outcomes[1].code == "scorer_failed"
    assert "thirteen" in outcomes[1].message


class Answers:
    name = "answers"
    version = "1"

    def __init__(self, *answers: Any) -> None:
        self.answers = answers

    def score(self, batch: Sequence[Item]) -> Any:
        return list(self.answers)


@pytest.mark.parametrize(
    "answer",
    [float("nan"), float("inf"), None, "high", Score(1.0, {"a": float("nan")}), Score(1.0, {"a": object()})],
)
def test_an_answer_that_cannot_be_sent_is_an_error(answer: Any) -> None:
    (outcome,) = score_batch(Answers(answer), [item(0)])
    assert isinstance(outcome, ItemError)
    assert outcome.code == "scorer_failed"


def test_a_wrong_number_of_answers_is_an_error_not_a_shift() -> None:
    for outcome in score_batch(Answers(1.0, 2.0), [item(0), item(1), item(2)]):
        assert isinstance(outcome, ItemError)


def test_numpy_values_become_plain_ones() -> None:
    details = {"box": np.array([1.5, 2.0]), "n": np.int64(3), "t": (1, 2)}
    (outcome,) = score_batch(Answers(Score(np.float32(0.5), details)), [item(0)])  # type: ignore[arg-type]
    assert outcome == Score(0.5, {"box": [1.5, 2.0], "n": 3, "t": [1, 2]})
    assert isinstance(outcome, Score)
    assert type(outcome.score) is float


def test_the_queue_is_bounded_and_takes_all_or_none() -> None:
    scorer = Echo()
    scorer.gate.clear()
    with running(scorer, queue_items=3) as thread:
        thread.submit([item(0)], deterministic=False)
        assert scorer.entered.wait(5)
        kept = thread.submit([item(1), item(2)], deterministic=False)
        with pytest.raises(QueueFull) as caught:
            thread.submit([item(3), item(4)], deterministic=False)
        assert 1 <= caught.value.retry_after_s <= 60
        scorer.gate.set()
        assert results(kept) == [Score(1.0), Score(2.0)]
    assert scorer.batches == [[0], [1, 2]]


def test_the_queue_is_bounded_in_bytes() -> None:
    scorer = Echo()
    scorer.gate.clear()
    with running(scorer, queue_bytes=20) as thread:
        thread.submit([item(0)], deterministic=False)
        assert scorer.entered.wait(5)
        thread.submit([item(1)], deterministic=False)
        with pytest.raises(QueueFull):
            thread.submit([item(2)], deterministic=False)
        scorer.gate.set()


def test_expired_and_abandoned_items_never_reach_the_scorer() -> None:
    scorer = Echo()
    scorer.gate.clear()
    now = [0.0]
    with running(scorer, clock=lambda: now[0]) as thread:
        first = thread.submit([item(0)], deterministic=False)
        assert scorer.entered.wait(5)
        expired = thread.submit([item(1)], deterministic=False, deadline_s=1.0)
        abandoned = thread.submit([item(2)], deterministic=False)
        alive = thread.submit([item(3)], deterministic=False, deadline_s=9.0)
        abandoned[0].cancel()
        now[0] = 2.0
        scorer.gate.set()
        results([*first, *alive])
        (outcome,) = results(expired)
    assert isinstance(outcome, ItemError)
    assert outcome.code == "deadline"
    assert scorer.batches == [[0], [3]]


def test_stopping_answers_what_is_queued() -> None:
    scorer = Echo()
    scorer.gate.clear()
    thread = ScorerThread(scorer, ServiceMetrics())
    thread.start()
    running_item = thread.submit([item(0)], deterministic=False)
    assert scorer.entered.wait(5)
    queued = thread.submit([item(1)], deterministic=False)
    threading.Timer(0.1, scorer.gate.set).start()
    thread.stop()
    assert results(running_item) == [Score(0.0)]
    (outcome,) = results(queued)
    assert isinstance(outcome, ItemError)
    assert outcome.retryable


def test_information_has_defaults() -> None:
    info = info_of(Answers())
    assert (info.name, info.range, info.batch_limit, info.batch_invariant) == ("answers", (None, None), 32, False)
