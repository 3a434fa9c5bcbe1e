"""Asks every replica, again and again, whether it is ready."""

import asyncio
import logging

from gateway.config import GatewayConfig
from gateway.dispatch import Dispatcher
from gateway.replicas import Replica
from gateway.upstream import Upstream

logger = logging.getLogger(__name__)


async def watch(dispatcher: Dispatcher, replica: Replica, upstream: Upstream, config: GatewayConfig) -> None:
    """Probes one replica until cancelled."""
    misses = 0
    while True:
        misses = await probe(dispatcher, replica, upstream, config, misses)
        await asyncio.sleep(config.probe_interval_s)


async def probe(
    dispatcher: Dispatcher, replica: Replica, upstream: Upstream, config: GatewayConfig, misses: int = 0
) -> int:
    """Probes once, tells the dispatcher, and returns how many probes in a row have gone unanswered.

    A refusal counts at once; silence only after `probe_misses`, since a busy machine can be silent for a while.
    A replica enters rotation once it has also said what it serves.
    """
    answer = await upstream.ready(replica.url, config.probe_timeout_s)
    misses = misses + 1 if answer is None else 0
    was_up = replica.up
    if answer and not was_up:
        info = await upstream.info(replica.url, config.probe_timeout_s)
        answer = info is not None
        if info is not None:
            dispatcher.learn(info)
    if answer is not None or misses >= config.probe_misses:
        dispatcher.probed(replica, bool(answer))
    if replica.up != was_up:
        logger.info("%s: replica %s is %s", dispatcher.reward, replica.url, "up" if replica.up else "down")
    return misses
