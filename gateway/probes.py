"""Asks a replica, again and again, whether it is ready."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field

from gateway.config import GatewayConfig
from gateway.dispatch import Dispatcher
from gateway.replicas import Replica
from gateway.upstream import Upstream

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Probe:
    """The readiness probe of one replica; what it finds goes to the dispatcher, and to the log when it changes.

    A refusal counts at once; silence only after several probes in a row, since a busy machine can be silent for a
    while. A replica enters rotation once it has also said what it serves.
    """

    dispatcher: Dispatcher
    replica: Replica
    upstream: Upstream
    config: GatewayConfig
    state: str = ""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set it for a probe without waiting for the next turn."""

    async def run(self) -> None:
        """Probes until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.probe_interval_s):
                    await self.hurry.wait()
            self.hurry.clear()
            await self.once()

    async def once(self) -> None:
        """One probe, at most two time-outs long."""
        ready = await self.upstream.ready(self.replica.url, self.config.probe_timeout_s)
        if ready and not self.replica.up:
            await self._introduce()
        else:
            was_up = self.replica.up
            self.dispatcher.probed(self.replica, ready)
            if not self.replica.up:
                self._log("silent" if ready is None and was_up else "down")

    async def _introduce(self) -> None:
        info = await self.upstream.info(self.replica.url, self.config.probe_timeout_s)
        if info is None:
            self.dispatcher.probed(self.replica, False)
            self._log("ready but does not say what it serves (is its REWARD_TOKEN ours?)")
            return
        self.dispatcher.learn(self.replica, info)
        self.dispatcher.probed(self.replica, True)
        self._log(f"up and serves {info.name} {info.version}")

    def _log(self, state: str) -> None:
        if state != self.state:
            logger.info("%s: replica %s is %s", self.dispatcher.reward, self.replica.url, state)
        self.state = state
