"""Moves the items of one reward from its queue to its replicas and the outcomes back.

The decisions live in `queue`, `replicas`, `admission`, `hedging` and `sharing`; this module owns the tasks and the
clock. Nothing polls: whatever changes the state (items arrive, a batch returns, a probe answers, a timer rings)
calls `wake`.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from gateway.admission import DrainRate, hopeless_for, retry_after
from gateway.config import RewardRoute
from gateway.content import content_key
from gateway.flights import Flight, Pending, Ticket, settle
from gateway.hedging import Hedging
from gateway.metrics import GatewayMetrics
from gateway.queue import Batch, BatchQueue, Entry
from gateway.replicas import Replica, ReplicaSet
from gateway.sharing import Mark, ResultCache, UnderWay, mark_of
from gateway.upstream import Busy, Failed, Refused, Unreachable
from reward_api import ErrorCode, Item, ItemError, Outcome, RewardInfo, Score
from reward_api.origins import batch_of

logger = logging.getLogger(__name__)

TURNED_AWAY_S = 0.5  # how long a replica that turned items away is left alone
TRIES = 2  # failures of a batch until it is taken apart, and of a single item until it is given up


class Send(Protocol):
    """Scores `items` at the service at `url`: one outcome an item, or an exception of `gateway.upstream`."""

    async def __call__(
        self, url: str, items: Sequence[Item], *, deterministic: bool, timeout_s: float
    ) -> list[Outcome]: ...


class Dispatcher:
    """The life of one reward inside the gateway: queue, replicas, batches in flight.

    `on_down` is called when a request has found a replica dead, `on_forgotten` when a retired one has finished.
    """

    def __init__(
        self,
        reward: str,
        route: RewardRoute,
        send: Send,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        weights: Mapping[str, float] | None = None,
        probe_misses: int = 3,
    ) -> None:
        self.reward = reward
        self.route = route
        self.queue: BatchQueue[Pending] = BatchQueue(
            max_items=route.queue_items,
            max_bytes=route.queue_bytes,
            max_batch=route.max_batch,
            batch_bytes=route.batch_bytes,
            max_delay_s=route.max_delay_ms / 1000,
            weights=weights,
        )
        self.replicas = ReplicaSet(
            (),
            now=clock(),
            inflight_batches=route.inflight_batches,
            eject_after=route.eject_after,
            eject_s=route.eject_s,
            eject_max_s=route.eject_max_s,
            probe_misses=probe_misses,
        )
        self.drain = DrainRate()
        self.hedging = Hedging(extra=route.hedge_extra)
        self.under_way: UnderWay[Entry[Pending]] = UnderWay(self._key)
        self.cache = ResultCache(max_entries=route.cache_entries, max_bytes=route.cache_bytes)
        self.info: RewardInfo | None = None
        self.on_down: Callable[[Replica], None] = lambda replica: None
        self.on_forgotten: Callable[[Replica], None] = lambda replica: None
        self._send = send
        self._metrics = metrics
        self._clock = clock
        self._flights: set[Flight] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._waking = False
        self._batch_size = metrics.batch_size.labels(reward)
        self._queue_wait = metrics.queue_wait.labels(reward)
        metrics.queue_items.labels(reward).set_function(lambda: self.queue.items)
        metrics.queue_bytes.labels(reward).set_function(lambda: self.queue.bytes)

    def list_replicas(self, urls: Sequence[str]) -> list[Replica]:
        """From now on these are the replicas. Returns the new ones, which are down until a probe says otherwise."""
        added = self.replicas.list_only(urls, self._clock())
        for replica in added:
            self._metrics.replica_up.labels(replica.url).set(0)
            self._metrics.inflight_batches.labels(replica.url).set_function(partial(_batches_in_flight, replica))
        self._forget_retired()
        self.wake()
        return added

    def refused_for(self, items: Sequence[Item], client: str = "", *, timeout_s: float = float("inf")) -> int | None:
        """Whole seconds after which `items` may find room and be scored within `timeout_s`; None if that is now."""
        size_bytes = sum(item.image.nbytes for item in items)
        if self._waking and not self.queue.has_room(len(items), size_bytes, client):
            self.wake()
        rate = self.drain.per_second(self._clock())
        excess = self.queue.excess(len(items), size_bytes, client)
        if excess > 0:
            return retry_after(excess, rate)
        hopeless_s = hopeless_for(self.queue.ahead_of(client), rate, timeout_s)
        return retry_after(hopeless_s, 1.0) if hopeless_s > 0 else None

    def submit(
        self, items: Sequence[Item], *, timeout_s: float, deterministic: bool = False, client: str = ""
    ) -> list[Ticket]:
        """Queues items, all of them; each ticket's `outcome` will be set.

        An item equal to one under way gets the other's answer, and one scored lately the answer of then. Raises
        OverflowError without room: ask `refused_for` before.
        """
        now = self._clock()
        alone = deterministic and not (self.info is not None and self.info.batch_invariant)
        tickets: list[Ticket] = []
        fresh: list[Entry[Pending]] = []
        for item in items:
            deadline = now + timeout_s
            mark = mark_of(item, alone) if self.route.share_equal else None
            ticket = self._known(item, mark, alone, deadline)
            if ticket is None:
                entry = Entry(Pending(item, mark), item.image.nbytes, now, deadline, deterministic=alone, client=client)
                ticket = Ticket(entry)
                entry.payload.tickets.append(ticket)
                fresh.append(entry)
                if mark is not None:
                    self.under_way.add(item, mark, entry)
            tickets.append(ticket)
        try:
            self.queue.put(fresh)
        except OverflowError:
            for entry in fresh:
                self._forget(entry)
            raise
        if fresh:
            self._wake_soon()
        return tickets

    def abandon(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more: their places are free at once, and batches nobody wants are called back."""
        unwanted: set[Flight] = set()
        for ticket in tickets:
            ticket.outcome.cancel()
            entry = ticket.entry
            if entry is None or ticket not in entry.payload.tickets:
                continue
            entry.payload.tickets.remove(ticket)
            if entry.payload.tickets:
                continue
            self.queue.discard(entry)
            self._forget(entry)
            if entry.payload.flight is not None and entry.payload.flight.unwanted:
                unwanted.add(entry.payload.flight)
        for flight in unwanted:
            self._land(flight)

    def learn(self, replica: Replica, info: RewardInfo) -> None:
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
        replica.version = info.version
        self.info = info
        self.queue.max_batch = min(self.route.max_batch, info.batch_limit)

    def probed(self, replica: Replica, up: bool | None) -> None:
        """Takes note of a probe: ready, not ready, or (None) silent. What a silent replica holds goes to another.

        One that says it is not ready may be finishing its last batches; those it keeps.
        """
        now = self._clock()
        if up is not None:
            self.replicas.probed(replica, up, now)
        elif self.replicas.missed(replica, now):
            self._recall(replica, Failed(f"{replica.url} no longer answers its probes", timed_out=True))
        self._metrics.replica_up.labels(replica.url).set(int(replica.up))
        self.wake()

    def wake(self) -> None:
        """Sends every batch that may leave, then sets the timer for the next one that may not yet."""
        self._waking = False
        now = self._clock()
        gone_s = self.replicas.gone_for(now)
        if gone_s is not None and gone_s >= self.route.no_replica_grace_s:
            self._settle(self.queue.drain(), ItemError(ErrorCode.NO_REPLICA, f"no replica of {self.reward} is up"))
        while (due := self.queue.due_at()) is not None and due <= now:
            retry = self.queue.next_retry()
            replica = (
                self.replicas.pick(now, avoid=retry.avoid, idle=retry.suspect) if retry else self.replicas.pick(now)
            )
            if replica is None:  # fresh batches do not overtake a suspect, or no replica would ever be idle for it
                break
            if replica.inflight_batches and not self.queue.full:  # it has something to do: let items gather
                break
            batch, expired = self.queue.take(now, self._share(now))
            self._settle(expired, ItemError(ErrorCode.DEADLINE, "the deadline passed before the item was sent"))
            if batch is not None:
                self._start(batch, replica, now)
        self.drain.loaded(self.queue.due_at() is not None and self.queue.full, now)
        self._set_timer(now)

    def _share(self, now: float) -> int:
        """Items for the next replica. Small batches side by side are done sooner than a large one beside idle replicas.

        Where the configuration asks for company, it is not sent away again.
        """
        if self.route.max_delay_ms > 0:
            return self.queue.max_batch
        return math.ceil(self.queue.items / max(1, self.replicas.idle(now)))

    def _wake_soon(self) -> None:
        """Wakes once what is ready in this turn of the event loop has been done: requests read in one go share it."""
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self.wake)

    def give_up(self, message: str) -> None:
        """Answers everybody who waits with `no_replica` and calls back what is in flight."""
        outcome = ItemError(ErrorCode.NO_REPLICA, message)
        for flight in list(self._flights):
            self._land(flight)
            self._settle(flight.batch.entries, outcome)
        self._settle(self.queue.drain(), outcome)

    async def aclose(self) -> None:
        """Gives up what is left and waits for the tasks to end."""
        self.give_up("the gateway is shutting down")
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()

    def _key(self, item: Item, version: str | None = None) -> bytes:
        known = self.info.version if self.info is not None else ""
        return content_key(item, self.reward, known if version is None else version)

    def _known(self, item: Item, mark: Mark | None, alone: bool, deadline: float) -> Ticket | None:
        """A ticket for an answer that is there already or is being fetched."""
        if self.route.cache_entries and not alone and (score := self.cache.get(self._key(item))) is not None:
            self._metrics.cache_hits.labels(self.reward, "cache").inc()
            ticket = Ticket()
            ticket.outcome.set_result(score)
            return ticket
        entry = self.under_way.find(item, mark) if mark is not None else None
        if entry is None:
            return None
        self._metrics.cache_hits.labels(self.reward, "under_way").inc()
        ticket = Ticket(entry)
        entry.payload.tickets.append(ticket)
        entry.payload.joined_in_flight = entry.payload.flight is not None
        entry.deadline = max(entry.deadline, deadline)
        return ticket

    def _start(self, batch: Batch[Pending], replica: Replica, now: float) -> None:
        flight = Flight(batch, now)
        flight.take_off()
        self._flights.add(flight)
        count = len(batch.entries)
        self._batch_size.observe(count)
        for entry in batch.entries:
            self._queue_wait.observe(now - entry.arrived)
        self.hedging.sent(count)
        self._attempt(flight, replica)
        if self.route.hedge and not batch.suspect:
            self._arm_hedge(flight)

    def _attempt(self, flight: Flight, replica: Replica) -> None:
        count = len(flight.batch.entries)
        self.replicas.started(replica, count, suspect=flight.batch.suspect)
        task = asyncio.create_task(self._deliver(flight, replica))
        flight.attempts[replica] = task
        self._tasks.add(task)
        task.add_done_callback(partial(self._returned, flight, replica, count, self._clock()))

    def _returned(
        self, flight: Flight, replica: Replica, count: int, started: float, task: "asyncio.Task[None]"
    ) -> None:
        self._tasks.discard(task)
        self.replicas.finished(replica, count)
        if not task.cancelled():
            self._metrics.batch_seconds.labels(replica.url).observe(self._clock() - started)
            if (fault := task.exception()) is not None:  # a fault of our own: nobody is left waiting
                logger.error("%s: a batch was lost", self.reward, exc_info=fault)
                self._land(flight)
                self._settle(flight.batch.entries, ItemError(ErrorCode.NO_REPLICA, "the gateway failed"))
        self._forget_retired()
        self.wake()

    async def _deliver(self, flight: Flight, replica: Replica) -> None:
        batch = flight.batch
        started = self._clock()
        patience_s = min(self.route.batch_timeout_s, batch.deadline - started)
        items = [entry.payload.item for entry in batch.entries]
        try:
            origins = [entry.payload.origin for entry in batch.entries]
            with batch_of(origins, f"batch {self.reward}", reward=self.reward, replica=replica.url, items=len(items)):
                outcomes = await self._send(
                    replica.url, items, deterministic=batch.deterministic, timeout_s=max(patience_s, 0.001)
                )
        except Unreachable as fault:
            self._mark_down(replica, fault)
            if self._was_last(flight, replica):
                self._again(batch, fault, failures=batch.failures)
        except Busy as fault:
            self.replicas.busy(replica, self._clock() + fault.retry_after_s)
            if self._was_last(flight, replica):
                self._again(batch, fault, failures=batch.failures)
        except Refused as fault:
            if self._was_last(flight, replica):
                self._take_apart(batch, fault)
        except Failed as fault:
            if fault.connection_lost:
                self._mark_down(replica, fault)
            out_of_time = fault.timed_out and patience_s < self.route.batch_timeout_s
            if not out_of_time:
                self._blame(replica)
            if self._was_last(flight, replica):
                if out_of_time:  # only those who joined later still wait
                    self._again(batch, fault, failures=batch.failures)
                else:
                    self._failed(batch, replica, fault)
        else:
            now = self._clock()
            self.replicas.succeeded(replica, now)
            self.hedging.took(len(items), now - started)
            if replica in flight.attempts:
                del flight.attempts[replica]
                for _ in flight.attempts:  # the other one took at least as long
                    self.hedging.took(len(items), now - flight.started)
                self._land(flight)
                self._answered(batch, replica, outcomes)

    def _answered(self, batch: Batch[Pending], replica: Replica, outcomes: Sequence[Outcome]) -> None:
        """Hands the outcomes out. Items a stopping or full replica has turned away go to another one."""
        turned_away = []
        too_late = []
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            code = outcome.code if isinstance(outcome, ItemError) else None
            if code == ErrorCode.OVERLOADED:
                turned_away.append(entry)
            elif code == ErrorCode.DEADLINE and entry.payload.joined_in_flight:
                too_late.append(entry)
            else:
                self._remember(entry, replica, outcome)
                self._settle([entry], outcome)
        self.drain.finished(len(batch.entries) - len(turned_away) - len(too_late), self._clock())
        if turned_away:
            busy = Busy("items turned away", TURNED_AWAY_S)
            self.replicas.busy(replica, self._clock() + busy.retry_after_s)
            self._again(replace(batch, entries=turned_away), busy, failures=batch.failures)
        if too_late:
            late = Failed("the deadline of the first who asked", timed_out=True)
            self._again(replace(batch, entries=too_late), late, failures=batch.failures)

    def _remember(self, entry: Entry[Pending], replica: Replica, outcome: Outcome) -> None:
        if self.route.cache_entries and isinstance(outcome, Score):
            self.cache.put(self._key(entry.payload.item, replica.version), outcome)

    def _recall(self, replica: Replica, fault: Failed) -> None:
        for flight in [flight for flight in self._flights if replica in flight.attempts]:
            flight.call_back(replica)
            if not flight.attempts:
                self._land(flight)
                self._failed(flight.batch, replica, fault)

    def _was_last(self, flight: Flight, replica: Replica) -> bool:
        """Ends the attempt at `replica`. Returns whether the batch has nobody else who may answer it."""
        if flight.attempts.pop(replica, None) is None or flight.attempts:
            return False
        self._land(flight)
        return True

    def _land(self, flight: Flight) -> None:
        self._flights.discard(flight)
        flight.land()

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

    def _arm_hedge(self, flight: Flight) -> None:
        patience_s = self.hedging.patience_s(len(flight.batch.entries))
        if patience_s is not None:
            flight.hedge = asyncio.get_running_loop().call_later(patience_s, self._hedge, flight)

    def _hedge(self, flight: Flight) -> None:
        """Sends a late batch to a second replica, if one has room and the budget allows it."""
        count = len(flight.batch.entries)
        replica = self.replicas.pick(self._clock(), avoid={r.url for r in flight.attempts}, strict=True)
        if replica is None or not self.hedging.allows(count):
            self._arm_hedge(flight)
            return
        self.hedging.sent_again(count)
        self._metrics.retries.labels("hedge").inc()
        self._attempt(flight, replica)

    def _mark_down(self, replica: Replica, fault: Exception) -> None:
        if replica.up:
            logger.warning("%s: replica %s is down: %s", self.reward, replica.url, fault)
        self.replicas.probed(replica, False, self._clock())
        self._metrics.replica_up.labels(replica.url).set(0)
        self.on_down(replica)

    def _blame(self, replica: Replica) -> None:
        if self.replicas.failed(replica, self._clock()):
            self._metrics.ejections.labels(replica.url).inc()

    def _forget_retired(self) -> None:
        for replica in self.replicas.forget_retired():
            self._metrics.forget(replica.url)
            self.on_forgotten(replica)

    def _settle(self, entries: Sequence[Entry[Pending]], outcome: Outcome) -> None:
        settle(entries, outcome)
        for entry in entries:
            self._forget(entry)

    def _forget(self, entry: Entry[Pending]) -> None:
        """Equal items no longer share its answer."""
        if entry.payload.mark is not None:
            self.under_way.remove(entry.payload.mark, entry)

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


def _batches_in_flight(replica: Replica) -> int:
    return replica.inflight_batches
