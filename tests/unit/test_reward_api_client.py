"""The client: what it tries again, what it gives up, and that no failure turns into a number."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
import pytest

from reward_api import Item, ItemError, Limits, Outcome, RewardClient, RewardRejected, RewardUnavailable, Score
from reward_api.client import TOKEN_VARIABLE
from reward_api.wire import decode_request, encode_response, status_of

pytestmark = pytest.mark.unit

Judge = Callable[[Item, int], Outcome]


class FakeServer:
    """Answers `/v1/score` from a list of canned responses first, then by a judge of (item, request number)."""

    def __init__(self, *canned: httpx.Response | Exception, judge: Judge | None = None) -> None:
        self.canned = list(canned)
        self.judge = judge or (lambda item, call: Score(float(item.image[0, 0, 0])))
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.canned:
            answer = self.canned.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        parsed = decode_request(request.headers["content-type"], request.content, Limits())
        outcomes: list[Mapping[str, Outcome]] = []
        for item in parsed.items:
            assert isinstance(item, Item)
            outcomes.append({name: self.judge(item, len(self.requests)) for name in item.rewards or ("own",)})
        body, media_type = encode_response(outcomes, request.headers["accept"])
        return httpx.Response(status_of(outcomes), content=body, headers={"Content-Type": media_type})

    def client(self, **options: Any) -> RewardClient:
        return RewardClient("http://rewards:1/", transport=httpx.MockTransport(self), **options)


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_api.client._BACKOFF_S", 0.0)


def item(value: int = 0, side: int = 2, rewards: tuple[str, ...] = ()) -> Item:
    return Item(np.full((side, side, 3), value, np.uint8), f"prompt {value}", rewards=rewards)


def refusal(status: int, **headers: str) -> httpx.Response:
    document = {"type": "about:blank", "title": "No", "status": status, "detail": "because", "item": 3}
    return httpx.Response(
        status,
        content=json.dumps(document),
        headers={"Content-Type": "application/problem+json", **{k.replace("_", "-"): v for k, v in headers.items()}},
    )


async def test_outcomes_by_index_and_reward() -> None:
    async with FakeServer().client() as client:
        outcomes = await client.score([item(v, rewards=("a", "b")) for v in range(5)])
    assert outcomes == [{"a": Score(float(v)), "b": Score(float(v))} for v in range(5)]


async def test_no_items_need_no_request() -> None:
    server = FakeServer()
    async with server.client() as client:
        assert await client.score([]) == []
    assert server.requests == []


async def test_large_requests_are_split_and_put_together_in_order() -> None:
    server = FakeServer()
    async with server.client() as client:
        outcomes = await client.score([item(v, side=700) for v in range(20)])
    assert [next(iter(o.values())) for o in outcomes] == [Score(float(v)) for v in range(20)]
    assert len(server.requests) > 1
    assert all(len(r.content) < Limits().max_body_bytes for r in server.requests)


async def test_many_small_items_are_split_by_number() -> None:
    server = FakeServer()
    async with server.client() as client:
        outcomes = await client.score([item()] * (2 * Limits().max_items + 1))
    assert len(outcomes) == 2 * Limits().max_items + 1
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "trouble",
    [httpx.ConnectError("refused"), httpx.RemoteProtocolError("hung up"), refusal(429), refusal(502), refusal(503)],
)
async def test_passing_trouble_is_tried_again(trouble: httpx.Response | Exception) -> None:
    server = FakeServer(trouble, trouble)
    async with server.client() as client:
        assert await client.score([item(7)]) == [{"own": Score(7.0)}]
    assert len(server.requests) == 3


async def test_attempts_end_with_an_error_that_names_address_and_cause() -> None:
    server = FakeServer(*[httpx.ConnectError("refused")] * 9)
    async with server.client(attempts=3) as client:
        with pytest.raises(RewardUnavailable, match=r"http://rewards:1/v1/score.*refused"):
            await client.score([item()])
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 415, 422])
async def test_other_4xx_are_never_tried_again(status: int) -> None:
    server = FakeServer(refusal(status))
    async with server.client() as client:
        with pytest.raises(RewardRejected) as caught:
            await client.score([item()])
    assert len(server.requests) == 1
    assert caught.value.problem.status == status
    assert caught.value.problem.detail == "because"
    assert caught.value.problem.extra == {"item": 3}


async def test_a_crash_of_the_server_is_not_tried_again() -> None:
    server = FakeServer(refusal(500))
    async with server.client() as client:
        with pytest.raises(RewardUnavailable, match="500"):
            await client.score([item()])
    assert len(server.requests) == 1


async def test_retry_after_is_honoured() -> None:
    server = FakeServer(refusal(503, Retry_After="0.2"))
    async with server.client() as client:
        started = time.monotonic()
        await client.score([item()])
    assert time.monotonic() - started >= 0.2


async def test_a_retry_after_past_the_deadline_is_not_waited_for() -> None:
    server = FakeServer(refusal(429, Retry_After="60"))
    async with server.client(timeout_s=5) as client:
        started = time.monotonic()
        with pytest.raises(RewardUnavailable, match="429"):
            await client.score([item()])
    assert time.monotonic() - started < 2


async def test_the_deadline_bounds_the_call_and_travels() -> None:
    async def silent(request: httpx.Request) -> httpx.Response:
        assert 0 < int(request.headers["x-deadline-ms"]) <= 200
        await asyncio.sleep(30)
        raise AssertionError

    async with RewardClient("http://rewards:1", timeout_s=0.2, transport=httpx.MockTransport(silent)) as client:
        started = time.monotonic()
        with pytest.raises(RewardUnavailable, match="no answer within"):
            await client.score([item()])
    assert time.monotonic() - started < 2


async def test_only_items_that_may_recover_are_sent_again() -> None:
    def judge(item: Item, call: int) -> Outcome:
        value = int(item.image[0, 0, 0])
        if value == 1:
            return ItemError("bad_image", "broken")
        if value == 2 and call == 1:
            return ItemError("no_replica", "none up")
        return Score(float(value))

    server = FakeServer(judge=judge)
    async with server.client() as client:
        outcomes = await client.score([item(0), item(1), item(2)])
    assert outcomes == [{"own": Score(0.0)}, {"own": ItemError("bad_image", "broken")}, {"own": Score(2.0)}]
    resent = decode_request("application/msgpack", server.requests[1].content, Limits())
    assert [i.prompt for i in resent.items if isinstance(i, Item)] == ["prompt 2"]


async def test_only_the_rewards_that_may_recover_are_asked_again() -> None:
    calls: list[tuple[str, ...]] = []

    class Server(FakeServer):
        async def __call__(self, request: httpx.Request) -> httpx.Response:
            (rewards,) = decode_request("application/msgpack", request.content, Limits()).rewards
            calls.append(rewards)
            error = ItemError("deadline", "late")
            outcomes = [{name: error if name == "b" and len(calls) == 1 else Score(1.0) for name in rewards}]
            body, media_type = encode_response(outcomes)
            return httpx.Response(200, content=body, headers={"Content-Type": media_type})

    async with Server().client() as client:
        assert await client.score([item(rewards=("a", "b"))]) == [{"a": Score(1.0), "b": Score(1.0)}]
    assert calls == [("a", "b"), ("b",)]


async def test_items_that_do_not_recover_stay_errors() -> None:
    down = ItemError("no_replica", "none up")
    server = FakeServer(judge=lambda item, call: down)
    async with server.client(attempts=3) as client:
        assert await client.score([item()]) == [{"own": down}]
    assert len(server.requests) == 3


async def test_scores_survive_a_server_that_goes_away_during_retries() -> None:
    down = ItemError("no_replica", "none up")
    server = FakeServer(judge=lambda item, call: down if item.image[0, 0, 0] == 1 else Score(5.0))
    async with server.client(attempts=2) as client:
        first = await server(httpx.Request("POST", "http://rewards:1/v1/score", **_body([item(0), item(1)])))
        server.canned = [first, httpx.ConnectError("gone"), httpx.ConnectError("gone")]
        assert await client.score([item(0), item(1)]) == [{"own": Score(5.0)}, {"own": down}]


def _body(items: list[Item]) -> dict[str, Any]:
    from reward_api.wire import MSGPACK, encode_request

    return {"content": encode_request(items), "headers": {"Content-Type": MSGPACK, "Accept": MSGPACK}}


@pytest.mark.parametrize("answer", [b"not json", b'{"items": []}', b'{"items": [{"results": {"a": {"score": null}}}]}'])
async def test_an_answer_that_cannot_be_read_is_no_score(answer: bytes) -> None:
    server = FakeServer(httpx.Response(200, content=answer, headers={"Content-Type": "application/json"}))
    async with server.client() as client:
        with pytest.raises(RewardUnavailable, match="/v1/score"):
            await client.score([item()])


async def test_token_by_argument_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "from-environment")
    for token, expected in ((None, "Bearer from-environment"), ("given", "Bearer given")):
        server = FakeServer()
        async with server.client(token=token) as client:
            await client.score([item()])
        assert server.requests[0].headers["authorization"] == expected


async def test_rewards_of_a_gateway_or_a_single_service() -> None:
    info = {"name": "ocr", "version": "1", "range": [0.0, None], "batch_limit": 4}
    gateway = FakeServer(httpx.Response(200, json={"rewards": [info]}))
    service = FakeServer(refusal(404), httpx.Response(200, json=info))
    for server in (gateway, service):
        async with server.client() as client:
            (reward,) = await client.rewards()
        assert (reward.name, reward.range, reward.batch_limit) == ("ocr", (0.0, None), 4)
