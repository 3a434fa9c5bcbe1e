"""The gateway's HTTP face before services that are small functions."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import numpy as np
import pytest
from PIL import Image

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.probes import Probe
from reward_api import Item, ItemError, Limits, RewardClient, RewardRejected, Score
from reward_api.wire import MSGPACK, decode_request, encode_response

pytestmark = pytest.mark.unit


def item(number: int, *rewards: str) -> Item:
    return Item(np.full((2, 2, 3), number, np.uint8), f"prompt {number}", rewards=rewards)


class FakeServices(httpx.AsyncBaseTransport):
    """http://NAME/ is a ready service of reward NAME whose score is the red of the first pixel."""

    def __init__(self, *, down: tuple[str, ...] = (), delay_s: float = 0.0) -> None:
        self.down = down
        self.delay_s = delay_s
        self.scored: list[tuple[str, int, dict[str, str]]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        if name in self.down:
            raise httpx.ConnectError("refused")
        if request.url.path == "/readyz":
            return httpx.Response(200)
        if request.url.path == "/v1/info":
            return httpx.Response(200, json={"name": name, "version": "7", "range": [0, None]})
        await asyncio.sleep(self.delay_s)
        parsed = decode_request(request.headers["content-type"], await request.aread(), Limits())
        self.scored.append((name, len(parsed.items), dict(request.headers)))
        outcomes = []
        for one, asked in zip(parsed.items, parsed.rewards, strict=True):
            assert isinstance(one, Item)
            assert asked == ()
            red = int(one.image[0, 0, 0])
            outcomes.append({name: ItemError("missing_text", "no quotes") if red == 13 else Score(red, {"by": name})})
        body, kind = encode_response(outcomes, MSGPACK)
        return httpx.Response(200, content=body, headers={"content-type": kind})


def config(**overrides: object) -> GatewayConfig:
    route: dict[str, object] = {"no_replica_grace_s": 0.0, "share_equal": False}
    rewards = {
        name: route | {"replicas": [f"http://{name}"]} | overrides.pop(name, {})  # type: ignore[operator]
        for name in ("count", "style")
    }
    return GatewayConfig.model_validate({"rewards": rewards, "probe_interval_s": 60} | overrides)


@asynccontextmanager
async def gateway_over(
    services: FakeServices, settings: GatewayConfig | None = None, *, token: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings or config(), transport=services, token=token)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


def body(*items: dict[str, object], **more: object) -> dict[str, object]:
    return {"items": list(items), **more}


def png(number: int = 5) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def wire_item(number: int = 5, **more: object) -> dict[str, object]:
    return {
        "image": {"base64": base64.b64encode(png(number)).decode()},
        "prompt": "a cat",
        "rewards": ["count"],
        **more,
    }


async def test_items_are_routed_by_reward_and_merged_by_index():
    services = FakeServices()
    app = create_app(config(), transport=services)
    items = [item(1, "count"), item(2, "style", "count"), item(13, "style"), item(4, "style")]
    client = RewardClient("http://gateway", transport=httpx.ASGITransport(app))
    async with app.router.lifespan_context(app), client:
        outcomes = await client.score(items)
    assert outcomes == [
        {"count": Score(1.0, {"by": "count"})},
        {"style": Score(2.0, {"by": "style"}), "count": Score(2.0, {"by": "count"})},
        {"style": ItemError("missing_text", "no quotes")},
        {"style": Score(4.0, {"by": "style"})},
    ]
    assert list(outcomes[1]) == ["style", "count"]
    assert sorted((name, count) for name, count, _ in services.scored) == [("count", 2), ("style", 3)]
    deadlines = [int(headers["x-deadline-ms"]) for *_, headers in services.scored]
    assert all(55_000 < left <= 60_000 for left in deadlines)


async def test_multipart_and_json_are_answered_in_json():
    async with gateway_over(FakeServices()) as client:
        form = await client.post(
            "/v1/score", files={"image": ("x.png", png(9))}, data={"prompt": "a cat", "rewards": "count,style"}
        )
        plain = await client.post(
            "/v1/score", json=body(wire_item(), {**wire_item(6), "rewards": []}, rewards=["style"])
        )
    assert form.status_code == 200
    assert {name: result["score"] for name, result in form.json()["items"][0]["results"].items()} == {
        "count": 9.0,
        "style": 9.0,
    }
    assert [list(one["results"]) for one in plain.json()["items"]] == [["count"], ["style"]]


async def test_a_corrupt_image_harms_no_other_item():
    async with gateway_over(FakeServices()) as client:
        corrupt = wire_item(image={"base64": base64.b64encode(png()[:30]).decode()}, rewards=["count", "style"])
        mixed = await client.post("/v1/score", json=body(wire_item(3), corrupt))
        alone = await client.post("/v1/score", json=body(corrupt))
    assert mixed.status_code == 200
    first, second = mixed.json()["items"]
    assert first["results"]["count"]["score"] == 3.0
    assert {name: result["error"]["code"] for name, result in second["results"].items()} == {
        "count": "bad_image",
        "style": "bad_image",
    }
    assert alone.status_code == 422
    assert alone.json()["items"][0] == second


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (body(wire_item(), wire_item(rewards=["beauty"])), 422, "unknown_reward"),
        (body(wire_item(), wire_item(rewards=[])), 422, "missing_rewards"),
    ],
)
async def test_an_envelope_fault_names_the_item(sent, status, code):
    services = FakeServices()
    async with gateway_over(services) as client:
        response = await client.post("/v1/score", json=sent)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.json()["item"], response.json()["code"]) == (1, code)
    assert "count, style" in response.json()["detail"]
    assert not services.scored


async def test_without_any_service_each_item_says_no_replica_and_when_to_return():
    async with gateway_over(FakeServices(down=("count", "style")), config(probe_interval_s=2.5)) as client:
        response = await client.post("/v1/score", json=body(wire_item(), wire_item(rewards=["style"])))
        ready = await client.get("/readyz")
        alive = await client.get("/livez")
        listed = await client.get("/v1/rewards")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    codes = [result["error"]["code"] for one in response.json()["items"] for result in one["results"].values()]
    assert codes == ["no_replica", "no_replica"]
    assert (ready.status_code, ready.json()["replicas_up"]) == (503, {"count": 0, "style": 0})
    assert ready.headers["content-type"] == "application/problem+json"
    assert alive.status_code == 200
    assert [info["meaning"] for info in listed.json()["rewards"]] == ["not known yet: no replica has been up"] * 2


async def test_with_one_service_up_the_other_rewards_items_fail_alone():
    async with gateway_over(FakeServices(down=("style",))) as client:
        response = await client.post("/v1/score", json=body(wire_item(3, rewards=["count", "style"])))
        ready = await client.get("/readyz")
    assert response.status_code == 200
    results = response.json()["items"][0]["results"]
    assert results["count"]["score"] == 3.0
    assert results["style"]["error"]["code"] == "no_replica"
    assert (ready.status_code, ready.json()["replicas_up"]) == (200, {"count": 1, "style": 0})


async def test_the_deadline_of_the_request_is_kept():
    services = FakeServices(delay_s=5.0)
    async with gateway_over(services) as client:
        response = await client.post("/v1/score", json=body(wire_item()), headers={"X-Deadline-Ms": "50"})
        none_left = await client.post("/v1/score", json=body(wire_item()), headers={"X-Deadline-Ms": "0"})
    assert [answer.status_code for answer in (response, none_left)] == [504, 504]
    assert response.json()["items"][0]["results"]["count"]["error"]["code"] == "deadline"
    assert response.elapsed.total_seconds() < 2


async def test_a_full_queue_is_429_and_what_never_fits_413():
    services = FakeServices(delay_s=0.05)
    settings = config(count={"queue_items": 3, "max_batch": 1, "inflight_batches": 1})
    async with gateway_over(services, settings) as client:
        running = asyncio.create_task(client.post("/v1/score", json=body(wire_item(), wire_item(), wire_item())))
        await asyncio.sleep(0.02)
        full = await client.post("/v1/score", json=body(wire_item(), wire_item(rewards=["count", "style"])))
        never = await client.post("/v1/score", json=body(*[wire_item()] * 4))
        metrics = (await client.get("/metrics")).text
        assert (await running).status_code == 200
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert full.json()["reward"] == "count"
    assert never.status_code == 413
    assert all(name == "count" for name, *_ in services.scored)  # nothing of the refused request was sent
    assert 'reward_requests_total{code="429",reward="count"} 1.0' in metrics


async def test_a_client_that_hangs_up_frees_its_places():
    services = FakeServices(delay_s=0.2)
    settings = config(count={"max_batch": 1, "inflight_batches": 1})
    app = create_app(settings, transport=services)
    async with app.router.lifespan_context(app):
        dispatcher = app.state.gateway.dispatchers["count"]
        sent = msgspec.json.encode(body(wire_item(), wire_item(), wire_item()))
        hung_up = asyncio.Event()
        answers: list[object] = []

        async def receive():
            if not hung_up.is_set() and not answers:
                answers.append("body read")
                return {"type": "http.request", "body": sent, "more_body": False}
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": headers, "query_string": b""}
        call = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(0.05)
        assert dispatcher.queue.items == 2
        hung_up.set()
        await call
        assert dispatcher.queue.items == 0


async def test_what_is_served_and_what_was_counted():
    async with gateway_over(FakeServices()) as client:
        await client.post("/v1/score", json=body(wire_item(3), wire_item(13)))
        listed = (await client.get("/v1/rewards")).json()["rewards"]
        metrics = (await client.get("/metrics")).text
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert [(info["name"], info["version"], info["range"]) for info in listed] == [
        ("count", "7", [0, None]),
        ("style", "7", [0, None]),
    ]
    for line in (
        'reward_requests_total{code="200",reward="count"} 1.0',
        'reward_items_total{outcome="ok",reward="count"} 1.0',
        'reward_items_total{outcome="missing_text",reward="count"} 1.0',
        'reward_replica_up{replica="http://style"} 1.0',
        'reward_queue_depth_items{reward="count"} 0.0',
        'reward_queue_bytes{reward="count"} 0.0',
        'reward_inflight_batches{replica="http://count"} 0.0',
        'reward_batch_size_count{reward="count"} 1.0',
        'reward_batch_seconds_count{replica="http://count"} 1.0',
        'reward_queue_wait_seconds_count{reward="count"} 2.0',
    ):
        assert line in metrics
    assert {"/v1/score", "/v1/rewards", "/readyz"} <= paths.keys()


async def test_a_token_guards_what_scores_and_nothing_else():
    async with gateway_over(FakeServices(), token="secret") as client:
        closed = [(await client.post("/v1/score", json=body(wire_item()))), await client.get("/v1/rewards")]
        opened = await client.get("/v1/rewards", headers={"Authorization": "Bearer secret"})
        public = [await client.get(path) for path in ("/livez", "/readyz", "/metrics")]
    assert [answer.status_code for answer in closed] == [401, 401]
    assert opened.status_code == 200
    assert [answer.status_code for answer in public] == [200, 200, 200]


async def test_the_client_does_not_retry_an_unknown_reward():
    app = create_app(config(), transport=FakeServices())
    client = RewardClient("http://gateway", transport=httpx.ASGITransport(app))
    async with app.router.lifespan_context(app), client:
        with pytest.raises(RewardRejected, match="beauty"):
            await client.score([item(1, "beauty")])
        assert [info.name for info in await client.rewards()] == ["count", "style"]


async def test_silence_counts_as_down_only_after_several_probes():
    class Moody(FakeServices):
        mood = "well"

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if self.mood == "silent":
                await asyncio.sleep(60)
            return await super().handle_async_request(request)

    services = Moody()
    app = create_app(config(probe_timeout_s=0.01, probe_misses=3), transport=services)
    async with app.router.lifespan_context(app):
        gateway = app.state.gateway
        dispatcher = gateway.dispatchers["count"]
        probe = Probe(dispatcher, dispatcher.replicas.replicas[0], gateway.upstream, gateway.config)
        services.mood = "silent"
        found = []
        for _ in range(3):
            await probe.once()
            found.append(gateway.replicas_up()["count"])
        services.mood = "well"
        await probe.once()
        found.append(gateway.replicas_up()["count"])
    assert found == [1, 1, 0, 1]


async def test_draining_refuses_what_comes_and_bounds_what_is_in_flight():
    services = FakeServices(delay_s=30.0)
    app = create_app(config(drain_s=0.1), transport=services)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            in_flight = asyncio.create_task(client.post("/v1/score", json=body(wire_item())))
            await asyncio.sleep(0.05)
            app.state.gateway.start_draining()
            refused = await client.post("/v1/score", json=body(wire_item()))
            ready = await client.get("/readyz")
            alive = await client.get("/livez")
            answer = await in_flight
    assert (refused.status_code, refused.headers["connection"], refused.headers["retry-after"]) == (503, "close", "60")
    assert (ready.status_code, alive.status_code) == (503, 200)
    assert answer.status_code == 503
    assert answer.json()["items"][0]["results"]["count"]["error"]["code"] == "no_replica"


async def test_equal_items_of_two_requests_are_scored_once():
    services = FakeServices(delay_s=0.05)
    settings = config(count={"share_equal": True, "cache_entries": 10})
    async with gateway_over(services, settings) as client:
        answers = await asyncio.gather(*(client.post("/v1/score", json=body(wire_item(3))) for _ in range(3)))
        answers.append(await client.post("/v1/score", json=body(wire_item(3))))
        metrics = (await client.get("/metrics")).text
    assert [answer.json()["items"][0]["results"]["count"]["score"] for answer in answers] == [3.0] * 4
    assert sum(count for _, count, _ in services.scored) == 1
    assert 'reward_cache_hits_total{by="under_way",reward="count"} 2.0' in metrics
    assert 'reward_cache_hits_total{by="cache",reward="count"} 1.0' in metrics
