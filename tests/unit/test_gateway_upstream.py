import asyncio
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from gateway.upstream import Busy, Failed, Refused, Unreachable, Upstream
from reward_api import Item, ItemError, Outcome, Score
from reward_api.wire import JSON, MSGPACK, encode_response

pytestmark = pytest.mark.unit

ITEMS = [Item(np.zeros((1, 1, 3), np.uint8), "a prompt", rewards=("a", "b"))] * 2


def answering(handler: Callable[[httpx.Request], httpx.Response]) -> Upstream:
    return Upstream(transport=httpx.MockTransport(handler))


def with_items(*outcomes: Outcome, status: int = 200, accept: str = MSGPACK) -> httpx.Response:
    body, kind = encode_response([{"fake": outcome} for outcome in outcomes], accept)
    return httpx.Response(status, content=body, headers={"content-type": kind})


async def score(upstream: Upstream) -> list[Outcome]:
    return await upstream.score("http://service", ITEMS, deterministic=False, timeout_s=5.0)


@pytest.mark.parametrize("status", [200, 422, 503, 504])
async def test_items_inside_any_of_these_answers_are_outcomes(status):
    outcomes = [Score(1.0), ItemError("deadline", "too late")]
    assert await score(answering(lambda request: with_items(*outcomes, status=status))) == outcomes


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (httpx.Response(429, headers={"retry-after": "3"}), Busy),
        (httpx.Response(503, text="warming up"), Busy),
        (httpx.Response(413, json={"title": "too large"}), Refused),
        (httpx.Response(401), Refused),
        (httpx.Response(408), Failed),
        (httpx.Response(500), Failed),
        (httpx.Response(302), Failed),
        (with_items(Score(1.0)), Failed),  # one outcome for two items
        (with_items(Score(1.0), Score(1.0), accept=JSON), Failed),  # not what was asked for
        (httpx.Response(200, content=b"\xc1", headers={"content-type": MSGPACK}), Failed),
    ],
)
async def test_every_other_answer_is_sorted_by_what_to_do(response, fault):
    with pytest.raises(fault, match="http://service"):
        await score(answering(lambda request: response))


async def test_the_pause_a_service_asks_for_is_kept():
    with pytest.raises(Busy) as caught:
        await score(answering(lambda request: httpx.Response(429, headers={"retry-after": "3"})))
    assert caught.value.retry_after_s == 3.0


@pytest.mark.parametrize(
    ("cause", "fault", "lost"),
    [
        (httpx.ConnectError("refused"), Unreachable, None),
        (httpx.ReadError("reset"), Failed, True),
        (httpx.RemoteProtocolError("closed"), Failed, True),
        (httpx.ReadTimeout("slow"), Failed, False),
    ],
)
async def test_what_never_arrived_is_told_from_what_was_lost(cause, fault, lost):
    def fail(request: httpx.Request) -> httpx.Response:
        raise cause

    with pytest.raises(fault) as caught:
        await score(answering(fail))
    if isinstance(caught.value, Failed):
        assert (caught.value.connection_lost, caught.value.timed_out) == (lost, not lost)


async def test_an_answer_has_a_deadline():
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            assert request.url.path == "/readyz" or request.headers["x-deadline-ms"] == "20"
            await asyncio.sleep(60)
            raise AssertionError

    upstream = Upstream(transport=Silent())
    with pytest.raises(Failed, match="no answer within") as caught:
        await upstream.score("http://service", ITEMS, deterministic=True, timeout_s=0.02)
    assert caught.value.timed_out
    assert await upstream.ready("http://service", 0.02) is None


async def test_metadata_no_encoding_holds_is_refused_not_fatal():
    huge = Item(np.zeros((1, 1, 3), np.uint8), "a prompt", {"count": 2**70})
    upstream = answering(lambda request: httpx.Response(500))
    with pytest.raises(Refused, match="cannot be sent on"):
        await upstream.score("http://service", [huge], deterministic=False, timeout_s=1.0)


async def test_readiness_and_information():
    def service(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/info":
            return httpx.Response(200, json={"name": "fake", "version": "1"})
        return httpx.Response(200 if request.url.host == "ready" else 503)

    upstream = answering(service)
    assert [await upstream.ready(f"http://{name}", 1.0) for name in ("ready", "loading")] == [True, False]
    info = await upstream.info("http://ready", 1.0)
    assert info is not None
    assert info.name == "fake"
    assert await answering(lambda request: httpx.Response(200, text="hello")).info("http://x", 1.0) is None
    await upstream.aclose()
