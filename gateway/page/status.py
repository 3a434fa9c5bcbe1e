"""What the page shows of each reward, read from the gateway's state."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.dispatch import Dispatcher
from gateway.page.activity import Activity


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """`state` is up, resting (ejected for a while) or down."""

    url: str
    state: str
    inflight_items: int
    inflight_batches: int


@dataclass(frozen=True, slots=True)
class RewardStatus:
    """One reward now; rates over the last 5 s, latencies over the last 10 s, in seconds."""

    name: str
    version: str
    meaning: str
    metadata: str
    range: tuple[float | None, float | None]
    replicas: list[ReplicaStatus]
    queue_items: int
    queue_items_limit: int
    queue_bytes: int
    queue_bytes_limit: int
    items_per_s: float
    errors_per_s: float
    p50_s: float | None
    p95_s: float | None


def statuses(
    dispatchers: Iterable[Dispatcher], activities: defaultdict[str, Activity], now: float
) -> list[RewardStatus]:
    """The state of every reward at `now`, on the clock of the dispatchers and of the activities."""
    return [_status(dispatcher, activities[dispatcher.reward], now) for dispatcher in dispatchers]


def _status(dispatcher: Dispatcher, activity: Activity, now: float) -> RewardStatus:
    info, queue = dispatcher.info, dispatcher.queue
    return RewardStatus(
        name=dispatcher.reward,
        version=info.version if info else "",
        meaning=info.meaning if info else "",
        metadata=info.metadata if info else "",
        range=info.range if info else (None, None),
        replicas=[
            ReplicaStatus(
                replica.url,
                "down" if not replica.up else "resting" if replica.ejected_until > now else "up",
                replica.inflight_items,
                replica.inflight_batches,
            )
            for replica in dispatcher.replicas.replicas
        ],
        queue_items=queue.items,
        queue_items_limit=queue.max_items,
        queue_bytes=queue.bytes,
        queue_bytes_limit=queue.max_bytes,
        items_per_s=activity.items_per_s(now),
        errors_per_s=activity.errors_per_s(now),
        p50_s=activity.latency_s(0.5, now),
        p95_s=activity.latency_s(0.95, now),
    )
