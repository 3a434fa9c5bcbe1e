"""Celery as the courier between table and workers: its settings, and the sending of messages.

Nothing rests on Celery keeping what it was given (see `leases`); the settings let it lose, repeat and delay little.
"""

import logging
import math

from celery import Celery
from kombu.entity import Queue

from gateway.jobs.config import JobsConfig
from gateway.jobs.job import Message

logger = logging.getLogger(__name__)

QUEUE = "flow_grpo_jobs"
SCORE_CHUNK = "flow_grpo.jobs.score_chunk"
MAILBOX = "gateway.jobs.mailbox:Transport"
REDIS = "gateway.jobs.redis_broker:Transport"


def celery_app(config: JobsConfig) -> Celery:
    """The app of both ends."""
    app = Celery("flow_grpo_jobs", set_as_current=False)
    # Beyond a task's longest time, so that Redis never delivers again what is still being worked on.
    visibility = {"visibility_timeout": math.ceil(config.lease_s)}
    if config.broker is None:
        app.conf.update(
            broker_url="filesystem://",
            broker_transport=MAILBOX,
            broker_transport_options=_folders(config) | {"polling_interval": 0.2},
        )
    else:
        app.conf.update(
            broker_url=config.broker,
            broker_transport=REDIS,
            broker_transport_options=visibility | {"socket_connect_timeout": 4.0, "socket_timeout": 30.0},
        )
    app.conf.update(
        task_acks_late=True,  # a message is gone when its chunk is scored, not when it is delivered
        task_reject_on_worker_lost=True,  # the death of a worker's child puts the message back at once
        worker_prefetch_multiplier=1,  # no worker holds messages that another could work on
        result_backend_transport_options=visibility,  # the broker's, as Celery asks, should results be switched on
        task_ignore_result=True,  # results are rows of the table
        task_time_limit=config.lease_s,
        task_serializer="json",
        accept_content=["json"],  # no pickle
        task_queues=[Queue(QUEUE, routing_key=QUEUE)],
        task_default_queue=QUEUE,
        broker_connection_timeout=4.0,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any absence of its broker
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the score is worth having, the message is not
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_concurrency=config.worker_processes,
    )
    return app


class Courier:
    """Sends messages to the broker of `config`."""

    def __init__(self, config: JobsConfig) -> None:
        self._app = celery_app(config)

    def send(self, message: Message) -> None:
        """Raises an exception of kombu or OSError within some 5 s where the broker does not take it."""
        arguments = (message.chunk_id, message.token)
        self._app.send_task(SCORE_CHUNK, arguments, task_id=message.token, queue=QUEUE, retry=False)

    def close(self) -> None:
        self._app.close()


def forgetful_settings(config: JobsConfig) -> list[str]:
    """Sentences on settings of a Redis broker that let it lose messages; each lost one delays its chunk by a lease."""
    if config.broker is None:
        return []
    import redis

    sentences = []
    try:
        with redis.Redis.from_url(config.broker, socket_timeout=4.0, socket_connect_timeout=4.0) as client:
            found = client.config_get("appendonly", "maxmemory-policy")
    except redis.RedisError as error:
        return [f"the settings of {config.broker.rpartition('@')[2]} cannot be read: {error}"]
    if found.get("appendonly") != "yes":
        sentences.append("the broker forgets its messages when it is restarted; set appendonly yes")
    if found.get("maxmemory-policy") != "noeviction":
        sentences.append(f"the broker may drop messages: maxmemory-policy is {found.get('maxmemory-policy')}")
    return sentences


def _folders(config: JobsConfig) -> dict[str, str]:
    names = ("data_folder_in", "data_folder_out", "control_folder", "processed_folder")
    messages, control = config.folder / "messages", config.folder / "control"
    for folder in (messages, control):
        folder.mkdir(parents=True, exist_ok=True)
    return dict(zip(names, map(str, (messages, messages, control, control)), strict=True))
