"""Asks a replica, again and again, whether it is ready."""

import asyncio
import logging
from dataclasses import dataclass

from gateway.config import GatewayConfig
from gateway.dispatch import Dispatcher
from gateway.replicas import Replica
from gateway.upstream import Upstream

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Probe:
    """The readiness probe of one replica; what it finds goes to the dispatcher, and to the log when it changes.

    A refusal counts at once; silence only after `probe_misses` probes in a row, since a busy machine can be silent
    for a while. A replica enters rotation once it has also said what it serves.
    """

    dispatcher: Dispatcher
    replica: Replica
    upstream: Upstream
    config: GatewayConfig
    misses: int = 0
    state: str = ""

    async def run(self) -> None:
        """Probes until cancelled."""
        while True:
            await asyncio.sleep(self.config.probe_interval_s)
            await self.once()

    async def once(self) -> None:
        """One probe, at most two time-outs long."""
        ready = await self.upstream.ready(self.replica.url, self.config.probe_timeout_s)
        self.misses = self.misses + 1 if ready is None else 0
        if ready is None and self.misses < self.config.probe_misses:
            return
        if not ready:
            self._found(False, "down")
        elif not self.replica.up:
            await self._introduce()

    async def _introduce(self) -> None:
        info = await self.upstream.info(self.replica.url, self.config.probe_timeout_s)
        if info is None:
            self._found(False, "ready but does not say what it serves (is its REWARD_TOKEN ours?)")
            return
        self.dispatcher.learn(info)
        self._found(True, f"up and serves {info.name} {info.version}")

    def _found(self, up: bool, state: str) -> None:
        self.dispatcher.probed(self.replica, up)
        if state != self.state:
            logger.info("%s: replica %s is %s", self.dispatcher.reward, self.replica.url, state)
        self.state = state
