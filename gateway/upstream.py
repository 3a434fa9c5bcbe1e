"""Talks to the reward services over one pool of connections, and sorts what can go wrong by what to do about it."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from http.client import responses
from types import MappingProxyType

import httpx

from gateway.connections import Answer, Connections, Network, ThroughHttpx
from reward_api import ErrorCode, Item, ItemError, Outcome, RewardInfo
from reward_api.client import TOKEN_VARIABLE
from reward_api.origins import outgoing_headers
from reward_api.wire import MSGPACK, decode_response, decode_rewards, encode_request

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.LocalProtocolError)
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_DEFAULT_PAUSE_S = 0.5


class Unreachable(Exception):
    """The batch never reached the replica: nothing is known against the batch."""


class Busy(Exception):
    """The replica takes nothing for now: nothing is known against either."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """The replica calls the request as a whole wrong (4xx); sending it to another would change nothing."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status

    def item_error(self) -> ItemError:
        code = ErrorCode.IMAGE_TOO_LARGE if self.status == 413 else ErrorCode.SCORER_FAILED
        return ItemError(code, f"refused by its reward service: {self}")


class Failed(Exception):
    """The replica got the batch and did not answer it: one of the two is bad."""

    def __init__(self, reason: str, *, timed_out: bool = False, connection_lost: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out
        self.connection_lost = connection_lost

    def item_error(self) -> ItemError:
        return ItemError(ErrorCode.SCORER_FAILED, f"failed repeatedly, also alone; last cause: {self}")


class Upstream:
    """A client of all reward services. The bearer token comes from the environment variable REWARD_TOKEN."""

    def __init__(self, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        token = os.environ.get(TOKEN_VARIABLE)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._network: Network = ThroughHttpx(transport) if transport is not None else Connections()

    async def score(self, url: str, items: Sequence[Item], *, deterministic: bool, timeout_s: float) -> list[Outcome]:
        """One outcome an item, in order. Raises Unreachable, Busy, Refused or Failed, and nothing else."""
        try:
            body = encode_request(items, deterministic=deterministic, only_reward=True)
        except (TypeError, ValueError, OverflowError) as error:
            raise Refused(422, f"metadata that cannot be sent on: {error}") from error
        headers = {"Content-Type": MSGPACK, "Accept": MSGPACK, "X-Deadline-Ms": str(int(timeout_s * 1000))}
        headers |= outgoing_headers()
        try:
            answer = await self._ask("POST", f"{url}/v1/score", timeout_s, body, headers)
        except _NEVER_SENT as error:
            raise Unreachable(f"{url}: {type(error).__name__}: {error}") from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Failed(f"{url}: no answer within {timeout_s:.1f} s", timed_out=True) from error
        except httpx.HTTPError as error:
            raise Failed(f"{url}: {type(error).__name__}: {error}", connection_lost=True) from error
        return _read_outcomes(url, answer, len(items))

    async def ready(self, url: str, timeout_s: float) -> bool | None:
        """Whether the service says it is ready; None if it says nothing in time."""
        try:
            answer = await self._ask("GET", f"{url}/readyz", timeout_s)
        except (TimeoutError, httpx.TimeoutException):
            return None
        except httpx.HTTPError:
            return False
        return answer.status == 200

    async def info(self, url: str, timeout_s: float) -> RewardInfo | None:
        """What the service says of its reward; None if it does not."""
        try:
            answer = await self._ask("GET", f"{url}/v1/info", timeout_s)
            return decode_rewards(answer.body)[0] if answer.status == 200 else None
        except (TimeoutError, httpx.HTTPError, ValueError, IndexError):
            return None

    async def aclose(self) -> None:
        await self._network.aclose()

    async def _ask(
        self,
        method: str,
        url: str,
        timeout_s: float,
        body: bytes = b"",
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> Answer:
        """One request and its whole answer. Raises TimeoutError and httpx.HTTPError."""
        async with asyncio.timeout(timeout_s):
            return await self._network.ask(method, url, {**self._headers, **headers}, body)


def _read_outcomes(url: str, answer: Answer, count: int) -> list[Outcome]:
    status = answer.status
    kind = answer.headers.get("content-type", "").split(";")[0]
    if status in {200, 422, 503, 504} and kind == MSGPACK:
        try:
            results = decode_response(kind, answer.body)
        except ValueError as error:
            raise Failed(f"{url}: unreadable answer: {error}") from error
        if len(results) != count or any(len(result) != 1 for result in results):
            raise Failed(f"{url}: {len(results)} results for {count} items, each must be of one reward")
        return [outcome for result in results for outcome in result.values()]
    reason = f"{url}: {status} {responses.get(status, '')}: {answer.body[:300].decode(errors='replace')}"
    if status in {429, 503}:
        raise Busy(reason, _retry_after(answer))
    if 400 <= status < 500 and status != 408:
        raise Refused(status, reason)
    raise Failed(reason)


def _retry_after(answer: Answer) -> float:
    try:
        return max(0.05, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return _DEFAULT_PAUSE_S
