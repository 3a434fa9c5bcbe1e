"""The replicas of one reward as they come and go: listed in the configuration, by an operator, or behind a DNS name."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from gateway.config import DNS_PREFIX, GatewayConfig
from gateway.dispatch import Dispatcher
from gateway.probes import Probe
from gateway.replicas import Replica
from gateway.upstream import Upstream

logger = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[list[str]]]

LOOKUP_S = 5.0


async def addresses_of(host: str, port: int) -> list[str]:
    """The IP addresses behind a name, sorted. Raises OSError if there are none or the look-up takes too long."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LOOKUP_S):
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


class Roster:
    """Keeps a dispatcher's replicas equal to what `endpoints` stand for, and a probe running for each."""

    def __init__(
        self, dispatcher: Dispatcher, upstream: Upstream, config: GatewayConfig, resolve: Resolve = addresses_of
    ) -> None:
        self.endpoints: list[str] = []
        self._dispatcher = dispatcher
        self._upstream = upstream
        self._config = config
        self._resolve = resolve
        self._found: dict[str, list[str]] = {}
        self._probes: dict[Replica, tuple[Probe, asyncio.Task[None]]] = {}
        self._resolving: asyncio.Task[None] | None = None
        dispatcher.on_down = self._hurry
        dispatcher.on_forgotten = self._stop_probing

    async def change(self, endpoints: Sequence[str]) -> None:
        """From now on these are the replicas. Returns once the new ones have been probed."""
        if list(endpoints) != self.endpoints:
            logger.info("%s: replicas are now %s", self._dispatcher.reward, ", ".join(endpoints) or "none")
        self.endpoints = list(endpoints)
        await self._refresh()
        if self._resolving is None and any(map(_is_name, self.endpoints)):
            self._resolving = asyncio.create_task(self._keep_resolving())

    async def aclose(self) -> None:
        """Ends all probes."""
        tasks = [task for _, task in self._probes.values()]
        tasks += [self._resolving] if self._resolving else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_resolving(self) -> None:
        while True:
            await asyncio.sleep(self._config.resolve_interval_s)
            await self._refresh()

    async def _refresh(self) -> None:
        await asyncio.gather(*(self._look_up(endpoint) for endpoint in self.endpoints if _is_name(endpoint)))
        urls = [url for endpoint in self.endpoints for url in self._found.get(endpoint, [])] + [
            endpoint for endpoint in self.endpoints if not _is_name(endpoint)
        ]
        added = self._dispatcher.list_replicas(list(dict.fromkeys(urls)))
        probes = [Probe(self._dispatcher, replica, self._upstream, self._config) for replica in added]
        await asyncio.gather(*(probe.once() for probe in probes))
        for probe in probes:
            if probe.replica in self._dispatcher.replicas.replicas:
                self._probes[probe.replica] = probe, asyncio.create_task(probe.run())

    async def _look_up(self, endpoint: str) -> None:
        """Remembers the addresses behind a name; those known before stand while it cannot be looked up."""
        parts = urlsplit(endpoint.removeprefix("dns+"))
        try:
            port = parts.port or 80
            hosts = await self._resolve(parts.hostname or "", port)
        except (OSError, TimeoutError) as error:
            logger.warning("%s: %s cannot be looked up: %s", self._dispatcher.reward, endpoint, error or "no answer")
            return
        self._found[endpoint] = [f"http://[{h}]:{port}" if ":" in h else f"http://{h}:{port}" for h in hosts]

    def _hurry(self, replica: Replica) -> None:
        if replica in self._probes:
            self._probes[replica][0].hurry.set()

    def _stop_probing(self, replica: Replica) -> None:
        if replica in self._probes:
            self._probes.pop(replica)[1].cancel()


def _is_name(endpoint: str) -> bool:
    return endpoint.startswith(DNS_PREFIX)
