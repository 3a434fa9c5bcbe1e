"""What is counted of jobs, by its Prometheus names."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge


class JobMetrics:
    """On the gateway's registry; the gauges are set by the sweeper."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Gauge("reward_jobs", "Jobs in the table", ["state"], registry=registry)
        self.pending = Gauge("reward_job_results_pending", "Scores that live jobs wait for", registry=registry)
        self.sent = Counter("reward_job_chunks_sent", "Chunks sent to workers", registry=registry)
        self.sent_again = Counter(
            "reward_job_chunks_sent_again", "Chunks sent after a lease had passed in silence", registry=registry
        )

    def found(self, by_state: Mapping[str, int], pending: int) -> None:
        """What the table holds now."""
        for state, count in by_state.items():
            self.jobs.labels(state).set(count)
        self.pending.set(pending)
