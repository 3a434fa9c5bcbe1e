"""The one thread that owns a scorer, and the bounded queue before it."""

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from reward_api import ErrorCode, Item, ItemError, Outcome, RewardInfo, Score, Scorer
from reward_api.origins import Origin, batch_of, current_origin
from reward_services.metrics import ServiceMetrics

logger = logging.getLogger(__name__)

_RATE_MEMORY = 0.8


class QueueFull(Exception):
    """The queue has no room; `retry_after_s` is when it should have, by the measured rate."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full, room expected in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    item: Item
    alone: bool
    deadline: float | None
    enqueued: float
    origin: Origin
    outcome: Future[Outcome]


def info_of(scorer: Scorer) -> RewardInfo:
    """What the scorer's class attributes say, with the defaults of `Scorer`."""
    return RewardInfo(
        name=scorer.name,
        version=scorer.version,
        range=(getattr(scorer, "low", None), getattr(scorer, "high", None)),
        meaning=getattr(scorer, "meaning", ""),
        metadata=getattr(scorer, "metadata", ""),
        batch_limit=getattr(scorer, "batch_limit", 32),
        batch_invariant=getattr(scorer, "batch_invariant", False),
    )


class ScorerThread:
    """Loads the scorer and warms it up, then scores what is queued, in order, in batches of up to its limit.

    Models keep state and handles that belong to one thread, hence one owner. An idle scorer takes what is
    there at once; items gather only while it is busy. Items whose deadline passed or whose caller left are
    dropped before a batch is formed. `when_warm` is called in that thread once the scorer is ready.
    """

    def __init__(
        self,
        scorer: Scorer,
        metrics: ServiceMetrics,
        *,
        queue_items: int = 1024,
        queue_bytes: int = 512 * 2**20,
        when_warm: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scorer = scorer
        self.info = info_of(scorer)
        self.not_ready: str | None = "the scorer is not started"
        self.failure: str | None = None
        self._metrics = metrics
        self._queue_items = queue_items
        self._queue_bytes = queue_bytes
        self._when_warm = when_warm
        self._clock = clock
        self._queue: deque[_Ticket] = deque()
        self._bytes = 0
        self._items_per_s = 0.0
        self._changed = threading.Condition()
        self._stopping = False
        self._inflight_batches = metrics.inflight_batches.labels("self")
        self._batch_seconds = metrics.batch_seconds.labels("self")
        self._taken_apart = metrics.retries.labels("taken_apart")
        metrics.replica_up.labels("self").set(0)
        self._thread = threading.Thread(target=self._run, name=f"scorer-{scorer.name}", daemon=True)

    def start(self) -> None:
        """Begin loading; `not_ready` says what is the matter until it turns None.

        If loading or warming up raises, `failure` says why and the scorer stays not ready.
        """
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Answer what is queued with `overloaded` and wait for the batch in hand, at most `timeout_s`."""
        with self._changed:
            self._stopping = True
            self.not_ready = self.failure or "the service is stopping"
            self._metrics.replica_up.labels("self").set(0)
            leftover = list(self._queue)
            self._queue.clear()
            self._bytes = 0
            self._changed.notify()
        for ticket in leftover:
            _resolve(ticket, ItemError(ErrorCode.OVERLOADED, "the service is stopping"))
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def submit(
        self, items: Sequence[Item], *, deterministic: bool, deadline_s: float | None = None
    ) -> list[Future[Outcome]]:
        """Queue all items or none (QueueFull). Cancelling a future gives up its item's place."""
        now = self._clock()
        deadline = None if deadline_s is None else now + deadline_s
        alone = deterministic and not self.info.batch_invariant
        origin = current_origin()
        tickets = [_Ticket(item, alone, deadline, now, origin, Future()) for item in items]
        size = sum(item.image.nbytes for item in items)
        with self._changed:
            over_items = len(self._queue) + len(items) > self._queue_items
            if self._queue and (over_items or self._bytes + size > self._queue_bytes):
                raise QueueFull(self._retry_after())
            self._queue.extend(tickets)
            self._bytes += size
            self._observe_queue()
            self._changed.notify()
        return [ticket.outcome for ticket in tickets]

    def _retry_after(self) -> int:
        """Whole seconds until the present queue should be drained, 1 to 60."""
        if self._items_per_s <= 0:
            return 1
        return max(1, min(60, math.ceil(len(self._queue) / self._items_per_s)))

    def _run(self) -> None:
        if not (self._prepare("load", "loading") and self._prepare("warm_up", "warming up")):
            return
        self._say(None)
        if self._when_warm is not None:
            self._when_warm()
        while (batch := self._next_batch()) is not None:
            if batch:
                self._score(batch)

    def _prepare(self, method: str, doing: str) -> bool:
        """Whether the scorer's optional `method` went well."""
        self._say(f"the scorer is {doing}")
        step = getattr(self.scorer, method, None)
        try:
            if step is not None:
                step()
        except (OSError, ValueError) as error:
            # What absent weights and wrong settings raise; the message is the whole story.
            logger.debug("reward %s failed while %s", self.info.name, doing, exc_info=True)
            self.failure = f"failed while {doing}: {error}"
        except Exception as error:
            logger.exception("reward %s failed while %s", self.info.name, doing)
            self.failure = f"failed while {doing}: {type(error).__name__}: {error}"
        if self.failure is not None:
            self._say(self.failure)
        return self.failure is None

    def _say(self, not_ready: str | None) -> None:
        with self._changed:
            if not self._stopping:
                self.not_ready = not_ready
                self._metrics.replica_up.labels("self").set(not_ready is None)

    def _next_batch(self) -> list[_Ticket] | None:
        """The next items still wanted, empty if all of those taken have expired; None when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            if self._stopping:
                return None
            taken: list[_Ticket] = []
            limit = 1 if self._queue[0].alone else self.info.batch_limit
            while self._queue and len(taken) < limit and (not taken or not self._queue[0].alone):
                ticket = self._queue.popleft()
                self._bytes -= ticket.item.image.nbytes
                taken.append(ticket)
            self._observe_queue()
        now = self._clock()
        batch: list[_Ticket] = []
        for ticket in taken:
            if not ticket.outcome.set_running_or_notify_cancel():
                continue
            if ticket.deadline is not None and now >= ticket.deadline:
                ticket.outcome.set_result(ItemError(ErrorCode.DEADLINE, "the deadline passed in the queue"))
                continue
            self._metrics.queue_wait.observe(now - ticket.enqueued)
            batch.append(ticket)
        return batch

    def _score(self, batch: list[_Ticket]) -> None:
        started = self._clock()
        self._inflight_batches.set(1)
        origins, name = [ticket.origin for ticket in batch], self.info.name
        with batch_of(origins, f"score {name}", reward=name, items=len(batch)):
            outcomes = score_batch(self.scorer, [ticket.item for ticket in batch], self._taken_apart.inc)
        elapsed = self._clock() - started
        self._inflight_batches.set(0)
        self._metrics.batch_size.observe(len(batch))
        self._batch_seconds.observe(elapsed)
        rate = len(batch) / max(elapsed, 1e-6)
        known = self._items_per_s or rate
        self._items_per_s = _RATE_MEMORY * known + (1 - _RATE_MEMORY) * rate
        for ticket, outcome in zip(batch, outcomes, strict=True):
            ticket.outcome.set_result(outcome)

    def _observe_queue(self) -> None:
        self._metrics.queue_items.set(len(self._queue))
        self._metrics.queue_bytes.set(self._bytes)


def score_batch(scorer: Scorer, items: Sequence[Item], taken_apart: Callable[[], None] = lambda: None) -> list[Outcome]:
    """One outcome an item. A batch that raises is scored again item by item, so that only the culprit fails.

    `taken_apart` is called where that happens.
    """
    try:
        answers = list(scorer.score(items))
        if len(answers) != len(items):
            raise ValueError(f"the scorer answered {len(answers)} outcomes to {len(items)} items")
    except Exception as error:
        if len(items) > 1:
            taken_apart()
            return [score_batch(scorer, [item])[0] for item in items]
        logger.exception("reward %s failed on an image of %s", scorer.name, items[0].image.shape)
        return [ItemError(ErrorCode.SCORER_FAILED, f"{type(error).__name__}: {error}")]
    return [_checked(answer) for answer in answers]


def _checked(answer: Outcome | float) -> Outcome:
    """The answer as an outcome that can be sent: a finite score, details of JSON values."""
    if isinstance(answer, ItemError):
        return answer
    try:
        outcome = answer if isinstance(answer, Score) else Score(float(answer))
        if not outcome.details:
            return outcome
        text = json.dumps(outcome.details, allow_nan=False, default=_plain_value, ensure_ascii=False)
        details = json.loads(text.encode())
    except (TypeError, ValueError) as error:
        return ItemError(ErrorCode.SCORER_FAILED, f"the scorer's answer cannot be sent: {error}")
    return replace(outcome, details=details)


def _plain_value(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _resolve(ticket: _Ticket, outcome: Outcome) -> None:
    if ticket.outcome.set_running_or_notify_cancel():
        ticket.outcome.set_result(outcome)
