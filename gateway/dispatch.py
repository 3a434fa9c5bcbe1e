"""Moves the items of one reward from its queue to its replicas and the outcomes back.

The decisions live in `queue`, `replicas` and `admission`; this module owns the tasks and the clock. Nothing polls:
whatever changes the state (items arrive, a batch returns, a probe answers, a timer rings) calls `wake`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gateway.admission import DrainRate, retry_after
from gateway.config import RewardRoute
from gateway.metrics import GatewayMetrics
from gateway.queue import Batch, BatchQueue, Entry
from gateway.replicas import Replica, ReplicaSet
from gateway.upstream import Busy, Failed, Refused, Unreachable
from reward_api import ErrorCode, Item, ItemError, Outcome, RewardInfo
from reward_api.origins import Origin, batch_of, current_origin

logger = logging.getLogger(__name__)

TURNED_AWAY_S = 0.5  # how long a replica that turned items away is left alone
TRIES = 2  # failures of a batch until it is taken apart, and of a single item until it is given up


class Send(Protocol):
    """Scores `items` at the service at `url`: one outcome an item, or an exception of `gateway.upstream`."""

    async def __call__(
        self, url: str, items: Sequence[Item], *, deterministic: bool, timeout_s: float
    ) -> list[Outcome]: ...


@dataclass(slots=True, eq=False)
class Pending:
    """An item on its way to one reward; `outcome` is where its answer will be."""

    item: Item
    origin: Origin = field(default_factory=current_origin)
    outcome: "asyncio.Future[Outcome]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


Ticket = Entry[Pending]


class Dispatcher:
    """The life of one reward inside the gateway: queue, replicas, batches in flight."""

    def __init__(
        self,
        reward: str,
        route: RewardRoute,
        send: Send,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reward = reward
        self.route = route
        self.queue: BatchQueue[Pending] = BatchQueue(
            max_items=route.queue_items,
            max_bytes=route.queue_bytes,
            max_batch=route.max_batch,
            batch_bytes=route.batch_bytes,
            max_delay_s=route.max_delay_ms / 1000,
        )
        self.replicas = ReplicaSet(
            route.replicas,
            now=clock(),
            inflight_batches=route.inflight_batches,
            eject_after=route.eject_after,
            eject_s=route.eject_s,
            eject_max_s=route.eject_max_s,
        )
        self.drain = DrainRate()
        self.info: RewardInfo | None = None
        self._send = send
        self._metrics = metrics
        self._clock = clock
        self._flights: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        metrics.queue_items.labels(reward).set_function(lambda: self.queue.items)
        metrics.queue_bytes.labels(reward).set_function(lambda: self.queue.bytes)
        for replica in self.replicas.replicas:
            metrics.replica_up.labels(replica.url).set(0)

    def refused_for(self, items: Sequence[Item]) -> int | None:
        """Whole seconds after which `items` may find room, or None if there is room now."""
        size_bytes = sum(item.image.nbytes for item in items)
        if self.queue.has_room(len(items), size_bytes):
            return None
        excess_items = float(self.queue.items + len(items) - self.queue.max_items)
        excess_bytes = self.queue.bytes + size_bytes - self.queue.max_bytes
        if excess_bytes > 0:
            excess_items = max(excess_items, excess_bytes * self.queue.items / max(self.queue.bytes, 1))
        return retry_after(excess_items, self.drain.per_second(self._clock()))

    def submit(self, items: Sequence[Item], *, timeout_s: float, deterministic: bool = False) -> list[Ticket]:
        """Queues items, all of them; each ticket's `payload.outcome` will be set.

        Raises OverflowError without room: ask `refused_for` before.
        """
        now = self._clock()
        batchable = not deterministic or (self.info is not None and self.info.batch_invariant)
        tickets = [
            Entry(Pending(item), item.image.nbytes, now, now + timeout_s, deterministic=not batchable) for item in items
        ]
        self.queue.put(tickets)
        self.drain.busy(now)
        self.wake()
        return tickets

    def abandon(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more: their places in the queue are free at once."""
        for ticket in tickets:
            self.queue.discard(ticket)
            ticket.payload.outcome.cancel()

    def learn(self, info: RewardInfo) -> None:
        """Takes note of what a replica says of its reward; batches do not exceed what it takes at once."""
        if self.info is None and info.batch_limit < self.route.max_batch:
            logger.warning(
                "%s: max_batch %d can never fill, the service takes %d at once",
                self.reward,
                self.route.max_batch,
                info.batch_limit,
            )
        if self.info is not None and self.info.version != info.version:
            logger.warning("%s: a replica serves version %s, another %s", self.reward, info.version, self.info.version)
        self.info = info
        self.queue.max_batch = min(self.route.max_batch, info.batch_limit)

    def probed(self, replica: Replica, up: bool) -> None:
        """Takes note of whether a replica is ready."""
        self.replicas.probed(replica, up, self._clock())
        self._metrics.replica_up.labels(replica.url).set(int(up))
        self.wake()

    def wake(self) -> None:
        """Sends every batch that may leave, then sets the timer for the next one that may not yet."""
        now = self._clock()
        gone_s = self.replicas.gone_for(now)
        if gone_s is not None and gone_s >= self.route.no_replica_grace_s:
            message = f"no replica of {self.reward} is up"
            self._settle(self.queue.drain(), ItemError(ErrorCode.NO_REPLICA, message))
        while (due := self.queue.due_at()) is not None and due <= now:
            retry = self.queue.next_retry()
            replica = (
                self.replicas.pick(now, avoid=retry.avoid, idle=retry.suspect) if retry else self.replicas.pick(now)
            )
            if replica is None:  # fresh batches do not overtake a suspect, or no replica would ever be idle for it
                break
            batch, expired = self.queue.take(now)
            self._settle(expired, ItemError(ErrorCode.DEADLINE, "the deadline passed before the item was sent"))
            if batch is not None:
                self._start(batch, replica, now)
        if not self._flights and self.queue.due_at() is None:
            self.drain.idle(now)
        self._set_timer(now)

    async def aclose(self) -> None:
        """Cancels what is in flight. Those who wait get the item error `no_replica`."""
        if self._timer is not None:
            self._timer.cancel()
        for flight in self._flights:
            flight.cancel()
        await asyncio.gather(*self._flights, return_exceptions=True)
        self._settle(self.queue.drain(), ItemError(ErrorCode.NO_REPLICA, "the gateway is shutting down"))

    def _start(self, batch: Batch[Pending], replica: Replica, now: float) -> None:
        self.replicas.started(replica, len(batch.entries), suspect=batch.suspect)
        self._metrics.inflight_batches.labels(replica.url).set(replica.inflight_batches)
        self._metrics.batch_size.labels(self.reward).observe(len(batch.entries))
        for entry in batch.entries:
            self._metrics.queue_wait.labels(self.reward).observe(now - entry.arrived)
        flight = asyncio.create_task(self._deliver(batch, replica))
        self._flights.add(flight)
        flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if not flight.cancelled():
            self.wake()

    async def _deliver(self, batch: Batch[Pending], replica: Replica) -> None:
        started = self._clock()
        count = len(batch.entries)
        patience_s = min(self.route.batch_timeout_s, batch.deadline - started)
        items = [entry.payload.item for entry in batch.entries]
        try:
            origins = [entry.payload.origin for entry in batch.entries]
            with batch_of(origins, f"batch {self.reward}", reward=self.reward, replica=replica.url, items=count):
                outcomes = await self._send(
                    replica.url, items, deterministic=batch.deterministic, timeout_s=max(patience_s, 0.001)
                )
        except Unreachable as fault:
            self._mark_down(replica, fault)
            self._again(batch, fault, failures=batch.failures)
        except Busy as fault:
            self.replicas.busy(replica, self._clock() + fault.retry_after_s)
            self._again(batch, fault, failures=batch.failures)
        except Refused as fault:
            self._take_apart(batch, fault)
        except Failed as fault:
            if fault.connection_lost:
                self._mark_down(replica, fault)
            if not fault.timed_out or patience_s == self.route.batch_timeout_s:
                self._blame(replica)
            self._failed(batch, replica, fault)
        except BaseException:  # cancelled with the gateway, or a fault of our own: nobody is left waiting
            self._settle(batch.entries, ItemError(ErrorCode.NO_REPLICA, "the gateway gave the batch up"))
            raise
        else:
            self.replicas.succeeded(replica, self._clock())
            self._answered(batch, replica, outcomes)
        finally:
            self.replicas.finished(replica, count)
            self._metrics.inflight_batches.labels(replica.url).set(replica.inflight_batches)
            self._metrics.batch_seconds.labels(replica.url).observe(self._clock() - started)

    def _answered(self, batch: Batch[Pending], replica: Replica, outcomes: Sequence[Outcome]) -> None:
        """Hands the outcomes out. Items a stopping or full replica has turned away go to another one."""
        turned_away = []
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            if isinstance(outcome, ItemError) and outcome.code == ErrorCode.OVERLOADED:
                turned_away.append(entry)
            else:
                self._settle([entry], outcome)
        self.drain.finished(len(batch.entries) - len(turned_away), self._clock())
        if turned_away:
            fault = Busy("items turned away", TURNED_AWAY_S)
            self.replicas.busy(replica, self._clock() + fault.retry_after_s)
            self._again(replace(batch, entries=turned_away), fault, failures=batch.failures)

    def _failed(self, batch: Batch[Pending], replica: Replica, fault: Failed) -> None:
        if batch.failures + 1 < TRIES:
            self._again(batch, fault, failures=batch.failures + 1, avoid=batch.avoid | {replica.url})
        else:
            self._take_apart(batch, fault)

    def _again(
        self, batch: Batch[Pending], fault: Exception, *, failures: int, avoid: frozenset[str] = frozenset()
    ) -> None:
        self._metrics.retries.labels(type(fault).__name__.lower()).inc()
        suspect = batch.suspect or failures > 0
        self.queue.put_back(Batch(batch.entries, failures=failures, suspect=suspect, avoid=avoid or batch.avoid))

    def _take_apart(self, batch: Batch[Pending], fault: Failed | Refused) -> None:
        """Singles, not halves: each further failure may cost a replica its restart, a small batch costs little."""
        if len(batch.entries) == 1:
            self.drain.finished(1, self._clock())
            self._settle(batch.entries, fault.item_error())
            return
        self._metrics.retries.labels("taken_apart").inc()
        for entry in batch.entries:
            self.queue.put_back(Batch([entry], suspect=True))

    def _mark_down(self, replica: Replica, fault: Exception) -> None:
        if replica.up:
            logger.warning("%s: replica %s is down: %s", self.reward, replica.url, fault)
        self.replicas.probed(replica, False, self._clock())
        self._metrics.replica_up.labels(replica.url).set(0)

    def _blame(self, replica: Replica) -> None:
        if self.replicas.failed(replica, self._clock()):
            self._metrics.ejections.labels(replica.url).inc()

    def _settle(self, entries: Sequence[Ticket], outcome: Outcome) -> None:
        for entry in entries:
            if not entry.payload.outcome.done():
                entry.payload.outcome.set_result(outcome)

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.queue.due_at()
        if due is None:
            return
        times = [due, self.replicas.next_change(now)]
        if self.replicas.none_up_since is not None:
            times.append(self.replicas.none_up_since + self.route.no_replica_grace_s)
        ahead = [when for when in times if when is not None and when > now]
        if ahead:
            self._timer = asyncio.get_running_loop().call_later(min(ahead) - now, self.wake)
