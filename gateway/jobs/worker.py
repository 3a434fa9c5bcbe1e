"""A Celery worker that scores the chunks of jobs through the gateway: `flow-grpo serve jobs-worker`."""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from celery import Celery, signals

from gateway.jobs.chunk import run_chunk
from gateway.jobs.config import JobsConfig
from gateway.jobs.courier import SCORE_CHUNK, celery_app, forgetful_settings
from gateway.jobs.leases import Leases
from gateway.jobs.store import ImageStore
from gateway.jobs.tables import open_database
from reward_api import RewardClient

logger = logging.getLogger(__name__)


def run_worker(config: JobsConfig, ready_file: Path | None = None) -> None:
    """Works until SIGTERM or SIGINT, which let a running task finish. `ready_file` receives the process's id."""
    for sentence in forgetful_settings(config):
        logger.warning("%s", sentence)
    app = worker_app(config)

    @signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def ready(**_: object) -> None:
        logger.info("worker takes chunks for %s from %s", config.gateway, config.broker or config.folder)
        if ready_file is not None:
            ready_file.write_text(f"{os.getpid()}\n")

    # Workers need not know of each other: who has what is in the table.
    worker = app.Worker(without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True)
    worker.start()


def worker_app(config: JobsConfig) -> Celery:
    """The app with the one task that there is."""
    app = celery_app(config)
    tools = functools.cache(lambda pid: _tools(config))  # opened by the process that uses them, never before a fork

    @app.task(name=SCORE_CHUNK)  # type: ignore[untyped-decorator]
    def score_chunk(chunk_id: str, token: str) -> None:
        leases, store, client = tools(os.getpid())
        run_chunk(chunk_id, token, leases, store, client, tries=config.tries, max_claims=config.max_claims)

    return app


def _tools(config: JobsConfig) -> tuple[Leases, ImageStore, Callable[[], RewardClient]]:
    leases = Leases(*open_database(config.database_url), config)
    client = functools.partial(RewardClient, config.gateway, timeout_s=config.chunk_timeout_s)
    return leases, ImageStore(config.folder / "images"), client
