"""kombu's Redis transport, for a worker that outlives a restart of Redis while it scores."""

from kombu.transport import redis
from kombu.transport.virtual import QoS as LocalQoS


class QoS(redis.QoS):
    """A message that cannot be acknowledged gives its place free all the same.

    With late acknowledgement the place is held while the chunk is scored. If Redis goes away meanwhile, the failed
    acknowledgement would hold it for ever, and a worker without a free place reads nothing, so that it never notices
    the lost connection either. The message may come again; the table knows that its chunk is done.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except self.channel.connection_errors:
            LocalQoS.ack(self, delivery_tag)
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        except self.channel.connection_errors:
            LocalQoS.ack(self, delivery_tag)
            raise


class Channel(redis.Channel):
    QoS = QoS


class Transport(redis.Transport):
    """Celery's `broker_transport` by the name "gateway.jobs.redis_broker:Transport"."""

    Channel = Channel
