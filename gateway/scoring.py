"""One request from its items to its answer: routed per reward, admitted as a whole, merged by index."""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import httpx

from gateway.config import GatewayConfig
from gateway.dispatch import Dispatcher
from gateway.metrics import GatewayMetrics
from gateway.roster import Roster
from gateway.upstream import Upstream
from reward_api import EnvelopeError, ErrorCode, Item, ItemError, Outcome, RewardInfo
from reward_api.http import ParsedRequest
from reward_api.problems import missing_rewards, unknown_reward

logger = logging.getLogger(__name__)

Results = list[dict[str, Outcome]]
Routed = dict[str, dict[int, Item]]


class Gateway:
    """The dispatchers of all rewards and the probes of their replicas. Use inside `async with`."""

    def __init__(self, config: GatewayConfig, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.config = config
        self.metrics = GatewayMetrics()
        self.upstream = Upstream(transport=transport)
        self.dispatchers = {
            name: Dispatcher(
                name,
                route,
                self.upstream.score,
                self.metrics,
                weights=config.client_weights,
                probe_misses=config.probe_misses,
            )
            for name, route in config.rewards.items()
        }
        self.rosters = {name: Roster(d, self.upstream, config) for name, d in self.dispatchers.items()}
        self.draining = False
        self._drain_end: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Gateway":
        await asyncio.gather(
            *(roster.change(self.config.rewards[name].replicas) for name, roster in self.rosters.items())
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._drain_end is not None:
            self._drain_end.cancel()
        for roster in self.rosters.values():
            await roster.aclose()
        for dispatcher in self.dispatchers.values():
            await dispatcher.aclose()
        await self.upstream.aclose()

    async def change_replicas(self, reward: str, endpoints: Sequence[str]) -> None:
        """Replaces the replicas of a reward, while it works. Raises KeyError for a reward not served here."""
        await self.rosters[reward].change(endpoints)

    async def reload(self, config: GatewayConfig) -> None:
        """Takes over the replicas of `config`; says in the log which other changes need a restart."""
        for name, roster in self.rosters.items():
            if name in config.rewards:
                await roster.change(config.rewards[name].replicas)
        ours, theirs = self.config.model_dump(), config.model_dump()
        for document in (ours, theirs):
            for route in document["rewards"].values():
                del route["replicas"]
        if ours != theirs:
            logger.warning("the configuration has changed beyond its replicas; restart the gateway for the rest")

    def start_draining(self) -> None:
        """New requests are refused from now on; after `drain_s` those still waiting are told so, item by item."""
        if self.draining:
            return
        self.draining = True
        logger.info("draining: %d items wait", sum(d.queue.items for d in self.dispatchers.values()))
        loop = asyncio.get_running_loop()
        self._drain_end = loop.call_later(self.config.drain_s, self._end_draining)

    def _end_draining(self) -> None:
        for dispatcher in self.dispatchers.values():
            dispatcher.give_up("the gateway is shutting down")

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which a reward without replica may have one: the next probe."""
        return max(1, math.ceil(self.config.probe_interval_s))

    def rewards(self) -> list[RewardInfo]:
        """What is served here. A reward none of whose replicas has been up yet is listed without a version."""
        unknown = RewardInfo(name="", version="", meaning="not known yet: no replica has been up")
        return [replace(d.info or unknown, name=name) for name, d in self.dispatchers.items()]

    def replicas_up(self) -> dict[str, int]:
        """Reward -> number of replicas that say they are ready."""
        return {name: sum(r.up for r in d.replicas.listed) for name, d in self.dispatchers.items()}

    async def score(self, request: ParsedRequest, client: str = "") -> Results:
        """Reward -> outcome for each item, in the order asked; an item that could not be read has its own error.

        A request is taken whole or not at all; `client` is whose share of the queue it uses. Raises EnvelopeError:
        422 for a missing or unknown reward, 413 for more than a queue can ever hold, 429 with Retry-After for more
        than it holds now or than is scored in time, 503 while shutting down. Cancelling the call frees the places of
        its items.
        """
        if self.draining:
            headers = {"Retry-After": str(self.retry_after_s), "Connection": "close"}
            raise EnvelopeError(503, "Shutting down", "this gateway takes no new requests", headers=headers)
        routed = self._route(request)
        asked_s = self.config.default_deadline_s if request.deadline is None else request.deadline
        timeout_s = min(max(asked_s, 0.0), self.config.max_deadline_s)
        self._admit(routed, client, timeout_s)
        tickets = {
            name: self.dispatchers[name].submit(
                list(items.values()), timeout_s=timeout_s, deterministic=request.deterministic, client=client
            )
            for name, items in routed.items()
        }
        try:
            outcomes = [ticket.outcome for sent in tickets.values() for ticket in sent]
            if outcomes:
                await asyncio.wait(outcomes, timeout=timeout_s)
            late = ItemError(ErrorCode.DEADLINE, f"no score within {timeout_s:g} s")
            found = {
                (index, name): ticket.outcome.result() if ticket.outcome.done() else late
                for name, items in routed.items()
                for index, ticket in zip(items, tickets[name], strict=True)
            }
        finally:
            for name, sent in tickets.items():
                self.dispatchers[name].abandon(sent)
        return [
            {name: item if isinstance(item, ItemError) else found[index, name] for name in request.rewards[index]}
            for index, item in enumerate(request.items)
        ]

    def _route(self, request: ParsedRequest) -> Routed:
        """Reward -> index -> item, of the items that could be read."""
        routed: Routed = defaultdict(dict)
        for index, (item, rewards) in enumerate(zip(request.items, request.rewards, strict=True)):
            if not rewards:
                raise missing_rewards(index, self.dispatchers)
            for name in rewards:
                if name not in self.dispatchers:
                    raise unknown_reward(index, name, list(self.dispatchers))
                if isinstance(item, Item):
                    routed[name][index] = item
        return dict(routed)

    def _admit(self, routed: Routed, client: str, timeout_s: float) -> None:
        waits: dict[str, int] = {}
        for name, by_index in routed.items():
            queue, items = self.dispatchers[name].queue, list(by_index.values())
            if not queue.could_ever_hold(len(items), sum(item.image.nbytes for item in items)):
                detail = f"the queue of {name} holds {queue.max_items} items and {queue.max_bytes} bytes of pixels"
                detail += "; an eighth of it is kept free for other clients"
                raise EnvelopeError(413, "Request too large", detail, reward=name)
            wait_s = self.dispatchers[name].refused_for(items, client, timeout_s=timeout_s)
            if wait_s is not None:
                waits[name] = wait_s
        if waits:
            name = max(waits, key=lambda full: waits[full])
            detail = f"the queue of {name} is too long; in {waits[name]} s there should be room"
            headers = {"Retry-After": str(waits[name])}
            raise EnvelopeError(429, "Too many requests", detail, headers=headers, reward=name)
