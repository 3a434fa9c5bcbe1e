"""One request from its items to its answer: routed per reward, admitted as a whole, merged by index."""

import asyncio
import math
from collections import defaultdict
from dataclasses import replace

import httpx

from gateway.config import GatewayConfig
from gateway.dispatch import Dispatcher
from gateway.metrics import GatewayMetrics
from gateway.probes import Probe
from gateway.upstream import Upstream
from reward_api import EnvelopeError, ErrorCode, Item, ItemError, Outcome, RewardInfo
from reward_api.http import ParsedRequest
from reward_api.problems import missing_rewards, unknown_reward

Results = list[dict[str, Outcome]]
Routed = dict[str, dict[int, Item]]


class Gateway:
    """The dispatchers of all rewards and the probes of their replicas. Use inside `async with`."""

    def __init__(self, config: GatewayConfig, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.config = config
        self.metrics = GatewayMetrics()
        self._upstream = Upstream(transport=transport)
        self.dispatchers = {
            name: Dispatcher(name, route, self._upstream.score, self.metrics) for name, route in config.rewards.items()
        }
        self._probes = [
            Probe(dispatcher, replica, self._upstream, config)
            for dispatcher in self.dispatchers.values()
            for replica in dispatcher.replicas.replicas
        ]
        self._probing: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Gateway":
        await asyncio.gather(*(probe.once() for probe in self._probes))
        self._probing = [asyncio.create_task(probe.run()) for probe in self._probes]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._probing:
            task.cancel()
        await asyncio.gather(*self._probing, return_exceptions=True)
        for dispatcher in self.dispatchers.values():
            await dispatcher.aclose()
        await self._upstream.aclose()

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
        return {name: sum(r.up for r in d.replicas.replicas) for name, d in self.dispatchers.items()}

    async def score(self, request: ParsedRequest) -> Results:
        """Reward -> outcome for each item, in the order asked; an item that could not be read has its own error.

        A request is taken whole or not at all. Raises EnvelopeError: 422 for a missing or unknown reward, 413 for
        more than a queue can ever hold, 429 with Retry-After for more than it holds now. Cancelling the call frees
        the places of its items.
        """
        routed = self._route(request)
        self._admit(routed)
        asked_s = self.config.default_deadline_s if request.deadline is None else request.deadline
        timeout_s = min(max(asked_s, 0.0), self.config.max_deadline_s)
        tickets = {
            name: self.dispatchers[name].submit(
                list(items.values()), timeout_s=timeout_s, deterministic=request.deterministic
            )
            for name, items in routed.items()
        }
        try:
            outcomes = [ticket.payload.outcome for sent in tickets.values() for ticket in sent]
            if outcomes:
                await asyncio.wait(outcomes, timeout=timeout_s)
            late = ItemError(ErrorCode.DEADLINE, f"no score within {timeout_s:g} s")
            found = {
                (index, name): ticket.payload.outcome.result() if ticket.payload.outcome.done() else late
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

    def _admit(self, routed: Routed) -> None:
        waits: dict[str, int] = {}
        for name, by_index in routed.items():
            queue, items = self.dispatchers[name].queue, list(by_index.values())
            if not queue.could_ever_hold(len(items), sum(item.image.nbytes for item in items)):
                detail = f"the queue of {name} holds {queue.max_items} items and {queue.max_bytes} bytes of pixels"
                raise EnvelopeError(413, "Request too large", detail, reward=name)
            wait_s = self.dispatchers[name].refused_for(items)
            if wait_s is not None:
                waits[name] = wait_s
        if waits:
            name = max(waits, key=lambda full: waits[full])
            detail = f"the queue of {name} is full; room is expected in {waits[name]} s"
            headers = {"Retry-After": str(waits[name])}
            raise EnvelopeError(429, "Too many requests", detail, headers=headers, reward=name)
