"""The gateway's part in the progress of jobs: sends what is due, counts, and removes what has expired."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.jobs.job import Message
from gateway.jobs.leases import Leases
from gateway.jobs.ledger import Ledger
from gateway.jobs.metrics import JobMetrics
from gateway.jobs.retention import Retention

logger = logging.getLogger(__name__)

RETENTION_EVERY_S = 60.0
COUNT_EVERY_S = 5.0


class Sender(Protocol):
    """Hands a message to the broker, or raises."""

    def send(self, message: Message) -> None: ...


class Sweeper:
    """Several gateways on one table may each have one."""

    def __init__(
        self,
        leases: Leases,
        ledger: Ledger,
        retention: Retention,
        sender: Sender,
        metrics: JobMetrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._leases = leases
        self._ledger = ledger
        self._retention = retention
        self._sender = sender
        self._metrics = metrics
        self._clock = clock
        self._count_at = 0.0
        self._retention_at = 0.0

    async def run(self, every_s: float) -> None:
        """Sweeps until cancelled. A failing sweep is logged, the next one may do better."""
        while True:
            sweep = asyncio.create_task(asyncio.to_thread(self.once))
            try:
                await asyncio.shield(sweep)
            except asyncio.CancelledError:
                await asyncio.wait({sweep})  # the database is not closed under it
                raise
            except Exception:
                logger.exception("a sweep of the jobs failed")
            await asyncio.sleep(every_s)

    def once(self) -> None:
        """One sweep."""
        now = self._clock()
        self._send(self._leases.due(now))
        if now >= self._count_at:
            self._count_at = now + COUNT_EVERY_S
            self._metrics.found(*self._ledger.counts())
        if now >= self._retention_at and self._retention.sweep(now) == 0:
            self._retention_at = now + RETENTION_EVERY_S

    def _send(self, messages: Iterable[Message]) -> None:
        fault: Exception | None = None
        for message in messages:
            if fault is None:
                try:
                    self._sender.send(message)
                except Exception as error:  # kombu passes on whatever its transports raise
                    fault = error
            if fault is not None:
                self._leases.unsent(message, self._clock())
                continue
            self._metrics.sent.inc()
            if message.again:
                self._metrics.sent_again.inc()
                logger.warning("chunk %s is sent again", message.chunk_id, extra={"chunk": message.chunk_id})
        if fault is not None:
            logger.warning("the broker takes no messages: %s: %s", type(fault).__name__, fault)
