"""The asynchronous client of the gateway and of single reward services."""

import asyncio
import os
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import httpx
import msgspec

from reward_api.contract import Item, ItemError, Outcome, RewardInfo
from reward_api.limits import Limits
from reward_api.problems import Problem, RewardRejected, RewardUnavailable
from reward_api.wire import MSGPACK, decode_response, decode_rewards, encode_request

TOKEN_VARIABLE = "REWARD_TOKEN"  # noqa: S105 - the name of the variable, not a token
CLIENT_HEADER = "X-Client-Id"
_TRY_AGAIN = frozenset({429, 502, 503, 504})
_CHUNK_BYTES = 8 * 2**20
_CHUNKS_AT_ONCE = 4
_BACKOFF_S, _BACKOFF_CAP_S = 0.1, 5.0


class RewardClient:
    """Scores items over HTTP; one client may serve many concurrent calls.

    `timeout_s` bounds a whole call, retries included, and travels to the server. Connection failures and answers
    429, 502, 503, 504 are tried again up to `attempts` times with full jitter, not before Retry-After; items whose
    error is retryable are sent again alone. The bearer token defaults to the environment variable REWARD_TOKEN.
    `client_id` is whose share of a gateway's queue is used; without it each process is a client of its own.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 60.0,
        attempts: int = 4,
        token: str | None = None,
        client_id: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        token = token or os.environ.get(TOKEN_VARIABLE)
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self.attempts = attempts
        client_id = client_id or f"{socket.gethostname()}-{os.getpid()}"
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={CLIENT_HEADER: client_id} | ({"Authorization": f"Bearer {token}"} if token else {}),
            transport=transport,
            trust_env=False,  # a proxy for the outside world must not catch calls to services
            # Below the servers' keep-alive of 75 s and more: no request goes out on a half-closed connection.
            limits=httpx.Limits(max_connections=64, keepalive_expiry=30.0),
        )

    async def score(self, items: Sequence[Item], *, deterministic: bool = False) -> list[dict[str, Outcome]]:
        """Reward name -> outcome for each item, in the order of `items`.

        Raises RewardUnavailable when no answer came within attempts and deadline, RewardRejected on a 4xx of the
        request as a whole. An item that failed is an ItemError among the outcomes, never a number.
        """
        deadline = time.monotonic() + self.timeout_s
        gate = asyncio.Semaphore(_CHUNKS_AT_ONCE)

        async def score_chunk(chunk: Sequence[Item]) -> list[dict[str, Outcome]]:
            async with gate:
                return await self._score_chunk(chunk, deterministic, deadline)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(score_chunk(chunk)) for chunk in _chunks(items)]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [outcomes for task in tasks for outcomes in task.result()]

    async def rewards(self) -> list[RewardInfo]:
        """The rewards the server offers: `/v1/rewards` of a gateway, `/v1/info` of a single service."""
        deadline = time.monotonic() + self.timeout_s
        response = await self._answer("GET", "/v1/rewards", None, deadline)
        if response.status_code == 404:
            response = await self._answer("GET", "/v1/info", None, deadline)
        if response.status_code != 200:
            raise RewardRejected(str(response.url), _problem(response))
        try:
            return decode_rewards(response.content)
        except ValueError as error:
            raise RewardUnavailable(f"{response.url} answered with no reward information: {error}") from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _score_chunk(
        self, items: Sequence[Item], deterministic: bool, deadline: float
    ) -> list[dict[str, Outcome]]:
        """Send one request, then again what is worth it: the failed rewards of the failed items only."""
        results: list[dict[str, Outcome]] = [{} for _ in items]
        pending = dict(enumerate(items))
        for attempt in range(1, self.attempts + 1):
            try:
                outcomes, retry_after = await self._post_items(list(pending.values()), deterministic, deadline)
            except RewardUnavailable:
                if attempt == 1:
                    raise
                return results  # each item has an outcome by now, if only "no replica"
            for index, answered in zip(pending, outcomes, strict=True):
                results[index].update(answered)
            pending = {index: again for index, item in pending.items() if (again := _to_retry(item, results[index]))}
            if not pending or attempt == self.attempts:
                return results
            pause = retry_after + _backoff(attempt)
            if time.monotonic() + pause >= deadline:
                return results
            await asyncio.sleep(pause)
        return results

    async def _post_items(
        self, items: Sequence[Item], deterministic: bool, deadline: float
    ) -> tuple[list[dict[str, Outcome]], float]:
        """One answered request: the outcomes, and how long the server wants to be left alone (seconds)."""
        response = await self._answer("POST", "/v1/score", encode_request(items, deterministic=deterministic), deadline)
        if not _carries_items(response):
            raise RewardRejected(str(response.url), _problem(response))
        try:
            outcomes = decode_response(response.headers.get("content-type", ""), response.content)
        except ValueError as error:
            raise RewardUnavailable(f"{response.url} sent an unreadable answer: {error}") from error
        if len(outcomes) != len(items):
            raise RewardUnavailable(f"{response.url} answered {len(outcomes)} items of {len(items)}")
        return outcomes, _retry_after(response)

    async def _answer(self, method: str, path: str, body: bytes | None, deadline: float) -> httpx.Response:
        """The first answer that is final or carries items."""
        url = self.base_url + path
        cause = "no attempt was made"
        for attempt in range(1, self.attempts + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            pause = _backoff(attempt)
            try:
                async with asyncio.timeout(left):
                    response = await self._http.request(
                        method, path, content=body, headers=_headers(left), timeout=httpx.Timeout(left)
                    )
            except (TimeoutError, httpx.TimeoutException):
                cause = f"no answer within {left:.1f} s"
            except httpx.TransportError as error:
                cause = f"{type(error).__name__}: {error}"
            else:
                if response.status_code < 500 and response.status_code not in _TRY_AGAIN:
                    return response
                if _carries_items(response):
                    return response
                problem = _problem(response)
                cause = f"{problem.status} {problem.title}: {problem.detail}"
                if response.status_code not in _TRY_AGAIN:
                    break
                pause += _retry_after(response)
            if attempt == self.attempts or time.monotonic() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        raise RewardUnavailable(f"{method} {url} failed, last cause: {cause}")


def _chunks(items: Sequence[Item]) -> list[list[Item]]:
    """Consecutive items, each chunk within a request's limits."""
    chunks: list[list[Item]] = []
    room_items = room_bytes = 0
    for item in items:
        if room_items < 1 or item.image.nbytes > room_bytes:
            chunks.append([])
            room_items, room_bytes = Limits().max_items, _CHUNK_BYTES
        chunks[-1].append(item)
        room_items, room_bytes = room_items - 1, room_bytes - item.image.nbytes
    return chunks


def _to_retry(item: Item, outcomes: dict[str, Outcome]) -> Item | None:
    failed = [name for name, outcome in outcomes.items() if isinstance(outcome, ItemError) and outcome.retryable]
    if not failed:
        return None
    return replace(item, rewards=tuple(failed)) if item.rewards else item


def _headers(left_s: float) -> dict[str, str]:
    return {"Content-Type": MSGPACK, "Accept": f"{MSGPACK}, application/json", "X-Deadline-Ms": str(int(left_s * 1000))}


def _backoff(attempt: int) -> float:
    return random.uniform(0, min(_BACKOFF_CAP_S, _BACKOFF_S * 2**attempt))


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


def _carries_items(response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "").split(";")[0]
    return response.status_code in {200, 422, 503, 504} and kind in {MSGPACK, "application/json"}


def _problem(response: httpx.Response) -> Problem:
    """The answer as a problem, whatever its body is."""
    try:
        document = msgspec.json.decode(response.content, type=dict[str, object])
    except ValueError:
        document = {}
    title = str(document.pop("title", response.reason_phrase))
    detail = str(document.pop("detail", response.text[:500]))
    kind = str(document.pop("type", "about:blank"))
    document.pop("status", None)
    return Problem(response.status_code, title, detail, kind, document)
