"""What the gateway counts, by its Prometheus names."""

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class GatewayMetrics:
    """One registry an app, so that several apps can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("reward_requests", "Requests answered", "reward", "code")
        self.items = self._counter("reward_items", "Items answered", "reward", "outcome")
        self.queue_items = self._gauge("reward_queue_depth_items", "Items waiting", "reward")
        self.queue_bytes = self._gauge("reward_queue_bytes", "Bytes of pixels waiting", "reward")
        self.queue_wait = self._histogram("reward_queue_wait_seconds", "Time in the queue", SECONDS, "reward")
        self.batch_size = self._histogram("reward_batch_size", "Items in a batch", SIZES, "reward")
        self.batch_seconds = self._histogram("reward_batch_seconds", "Time at a replica", SECONDS, "replica")
        self.inflight_batches = self._gauge("reward_inflight_batches", "Batches at a replica", "replica")
        self.replica_up = self._gauge("reward_replica_up", "1 while the replica says it is ready", "replica")
        self.ejections = self._counter("reward_replica_ejections", "Ejections after failures in a row", "replica")
        self.retries = self._counter("reward_retries", "Batches sent once more", "reason")
        self.cache_hits = self._counter("reward_cache_hits", "Items whose score was known or under way", "reward", "by")

    def forget(self, replica: str) -> None:
        """Drops the series of a replica that is no longer there."""
        for family in (self.batch_seconds, self.inflight_batches, self.replica_up, self.ejections):
            with contextlib.suppress(KeyError):
                family.remove(replica)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
