"""Prometheus figures of one reward service, under the gateway's names; its one replica is itself. Seconds."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ServiceMetrics:
    """One registry an app, so that several apps live in one process.

    Where PROMETHEUS_MULTIPROC_DIR is set, as it is for workers behind one port, the figures are those of all workers
    together: totals count those of ended ones, gauges only living ones.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "reward_requests_total", "Requests by HTTP status", ["reward", "code"], registry=self.registry
        )
        self.items = Counter(
            "reward_items_total", "Items by outcome: ok or error code", ["reward", "outcome"], registry=self.registry
        )
        self.queue_items = Gauge(
            "reward_queue_depth_items", "Items waiting", registry=self.registry, multiprocess_mode="livesum"
        )
        self.queue_bytes = Gauge(
            "reward_queue_bytes", "Pixels waiting, in bytes", registry=self.registry, multiprocess_mode="livesum"
        )
        self.queue_wait = Histogram(
            "reward_queue_wait_seconds", "Time an item waited", buckets=_SECONDS, registry=self.registry
        )
        self.batch_size = Histogram(
            "reward_batch_size", "Items a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.batch_seconds = Histogram(
            "reward_batch_seconds", "Time to score a batch", ["replica"], buckets=_SECONDS, registry=self.registry
        )

        self.inflight_batches = Gauge(
            "reward_inflight_batches",
            "Batches being scored",
            ["replica"],
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        # Of each worker by itself, with its process id.
        self.replica_up = Gauge(
            "reward_replica_up",
            "1 while the scorer is ready",
            ["replica"],
            registry=self.registry,
            multiprocess_mode="liveall",
        )
        self.retries = Counter("reward_retries_total", "Batches scored once more", ["reason"], registry=self.registry)

    def render(self) -> bytes:
        """The text exposition format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
