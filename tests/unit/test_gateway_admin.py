"""Who may change the replicas, how, and under which name a client takes its share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.requests import Request

from gateway.app import create_app
from gateway.clients import client_of, tokens_of
from gateway.config import GatewayConfig

pytestmark = pytest.mark.unit

A, B = "http://a", "http://b"


async def service(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"name": "ocr", "version": "1"})


@asynccontextmanager
async def admin(token: object = None) -> AsyncIterator[httpx.AsyncClient]:
    config = GatewayConfig.model_validate({"rewards": {"ocr": {"replicas": [A]}}, "probe_interval_s": 60})
    app = create_app(config, transport=httpx.MockTransport(service), token=token)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client,
    ):
        yield client


def replicas(answer: httpx.Response) -> dict[str, bool]:
    assert answer.status_code == 200, answer.text
    return {one["url"]: one["up"] for one in answer.json()["rewards"]["ocr"]["replicas"]}


async def test_replicas_are_added_removed_and_replaced():
    async with admin() as client:

        async def change(**wanted: object) -> dict[str, bool]:
            return replicas(await client.post("/v1/admin/replicas", json={"reward": "ocr", **wanted}))

        assert replicas(await client.get("/v1/admin/replicas")) == {A: True}
        assert await change(add=[B, A]) == {A: True, B: True}
        assert await change(remove=[A, "http://nobody"]) == {B: True}
        assert await change(replicas=[A, B, A]) == {B: True, A: True}
        assert await change(replicas=[]) == {}
        metrics = (await client.get("/metrics")).text
    assert "reward_replica_up{" not in metrics


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"not json", "Invalid JSON"),
        (b'{"reward": "ocr"}', "either replicas, or add and remove"),
        (b'{"reward": "ocr", "replicas": [], "add": ["http://a"]}', "either replicas, or add and remove"),
        (b'{"reward": "ocr", "add": ["ftp://a"]}', "'ftp://a'"),
        (b'{"reward": "ocr", "add": ["http://a:99999"]}', "out of range"),
        (b'{"reward": "ocr", "ad": ["http://a"]}', "ad: "),
        (b'{"reward": "beauty", "add": ["http://a"]}', "there are ocr"),
    ],
)
async def test_a_change_that_cannot_be_is_refused_in_words(sent, words):
    async with admin() as client:
        answer = await client.post("/v1/admin/replicas", content=sent)
        assert replicas(await client.get("/v1/admin/replicas")) == {A: True}
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]


async def test_a_change_has_a_bounded_body():
    async with admin() as client:
        answer = await client.post("/v1/admin/replicas", content=b" " * (2**20 + 1))
    assert answer.status_code == 413


async def test_only_with_a_token():
    async with admin({"trainer": "one", "": "two"}) as client:
        for sent, status in (("", 401), ("Bearer three", 401), ("Bearer one", 200), ("Bearer two", 200)):
            for answer in (
                await client.get("/v1/admin/replicas", headers={"Authorization": sent}),
                await client.post(
                    "/v1/admin/replicas", json={"reward": "ocr", "add": [B]}, headers={"Authorization": sent}
                ),
            ):
                assert answer.status_code == status


def test_tokens_come_from_the_environment():
    assert tokens_of({}) is None
    assert tokens_of({"REWARD_TOKEN": "x"}) == "x"
    both = {"REWARD_TOKEN": "x", "REWARD_CLIENT_TOKENS": "trainer=a== evaluation=b"}
    assert tokens_of(both) == {"trainer": "a==", "evaluation": "b", "": "x"}
    with pytest.raises(ValueError, match="REWARD_CLIENT_TOKENS: part 2") as caught:
        tokens_of({"REWARD_CLIENT_TOKENS": "trainer=a secret"})
    assert "secret" not in str(caught.value)


def test_a_client_is_known_by_its_tokens_name_then_its_header_then_its_address():
    def request(*headers: tuple[bytes, bytes]) -> Request:
        return Request({"type": "http", "headers": list(headers), "client": ("10.0.0.9", 1234)})

    named = request((b"x-client-id", b"e" * 100))
    assert client_of(named, "trainer") == "trainer"
    assert client_of(named, "") == "e" * 64
    assert client_of(request(), "") == "10.0.0.9"
