"""The app of one reward over ASGI: encodings, bad input, overload, tokens, metrics."""

import asyncio
import base64
import gzip
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from false_pngs import png_header
from fastapi import FastAPI
from PIL import Image

from reward_api import Item, ItemError, Limits, Outcome, RewardClient, RewardRejected, Score
from reward_services.service import create_app

pytestmark = pytest.mark.unit


class Brightness:
    name = "brightness"
    version = "3"
    low, high = 0.0, 255.0
    meaning = "mean of all channels"
    batch_limit = 4

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def score(self, batch: Sequence[Item]) -> list[Outcome | float]:
        self.entered.set()
        assert self.gate.wait(5)
        self.seen.extend(item.prompt for item in batch)
        if any(item.prompt == "poison" for item in batch):
            raise RuntimeError("poisoned")
        return [Score(float(item.image.mean()), {"metadata": item.metadata}) for item in batch]


@asynccontextmanager
async def service(scorer: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with started(create_app(scorer, **options)) as client:
        await readiness(client, "ready\n")
        yield client


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


async def readiness(client: httpx.AsyncClient, text: str) -> None:
    """Wait until /readyz says `text`."""
    for _ in range(1000):
        if text in (await client.get("/readyz")).text:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"/readyz never said {text!r}")


def png(value: int = 10, side: int = 6) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def json_item(image: bytes | None = None, **fields: Any) -> dict[str, Any]:
    return {"image": {"base64": base64.b64encode(image or png()).decode()}, "prompt": "grey", **fields}


def result(response: httpx.Response, index: int = 0) -> dict[str, Any]:
    (outcome,) = response.json()["items"][index]["results"].values()
    return dict(outcome)


def assert_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert {"type", "title", "detail"} <= document.keys()
    return dict(document)


async def test_a_form_as_curl_sends_it() -> None:
    async with service(Brightness()) as client:
        data = {"prompt": "grey", "metadata": '{"a": [1, 2]}', "rewards": "brightness"}
        response = await client.post("/v1/score", files={"image": ("x.png", png(10))}, data=data)
    assert response.status_code == 200
    assert response.json() == {
        "items": [{"results": {"brightness": {"score": 10.0, "details": {"metadata": {"a": [1, 2]}}}}}]
    }


async def test_a_form_of_several_images() -> None:
    files = [("image", (f"{v}.png", png(v))) for v in (1, 2, 3)]
    async with service(Brightness()) as client:
        shared = await client.post("/v1/score", files=files, data={"prompt": "grey"})
        each = await client.post("/v1/score", files=files, data={"prompt": ["a", "b", "c"], "deterministic": "true"})
        uneven = await client.post("/v1/score", files=files, data={"prompt": ["a", "b"]})
    assert [result(shared, i)["score"] for i in range(3)] == [1.0, 2.0, 3.0]
    assert each.status_code == 200
    assert "prompt" in assert_problem(uneven, 422)["detail"]


@pytest.mark.parametrize(
    ("data", "files"),
    [
        ({"prompt": "grey"}, {"prompt_file": ("x", b"1")}),
        ({"prompt": "grey", "seed": "1"}, {"image": ("x.png", png())}),
        ({"prompt": "grey", "deterministic": "maybe"}, {"image": ("x.png", png())}),
        ({}, {"image": ("x.png", png()), "prompt": ("p.txt", b"grey")}),
    ],
)
async def test_forms_that_are_no_request(data: dict[str, str], files: dict[str, Any]) -> None:
    async with service(Brightness()) as client:
        assert_problem(await client.post("/v1/score", data=data, files=files), 422)


async def test_a_form_cut_short_is_malformed() -> None:
    headers = {"Content-Type": "multipart/form-data"}
    async with service(Brightness()) as client:
        assert_problem(await client.post("/v1/score", content=b"--x\r\nnonsense", headers=headers), 400)


async def test_json_and_msgpack_answers() -> None:
    async with service(Brightness()) as client:
        asked = await client.post("/v1/score", json={"items": [json_item()]}, headers={"Accept": "application/msgpack"})
    assert asked.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(asked.content)["items"][0]["results"]["brightness"]["score"] == 10.0


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (json_item(png()[:-30]), "bad_image"),
        (json_item(png_header(12_000, 12_000)), "image_too_large"),
        (json_item(prompt=None), "missing_prompt"),
        (json_item(prompt=""), "missing_prompt"),
        (json_item(metadata={"a": float("nan")}), "bad_metadata"),
        (json_item(image=b"GIF89a nothing"), "bad_image"),
    ],
)
async def test_bad_items(item: dict[str, Any], code: str) -> None:
    scorer = Brightness()
    headers = {"Content-Type": "application/json"}
    async with service(scorer) as client:
        alone = await client.post("/v1/score", content=json.dumps({"items": [item]}), headers=headers)
        mixed = await client.post(
            "/v1/score", content=json.dumps({"items": [json_item(), item, json_item()]}), headers=headers
        )
    assert alone.status_code == 422
    assert result(alone)["error"]["code"] == code
    assert mixed.status_code == 200
    assert [result(mixed, i).get("score") for i in range(3)] == [10.0, None, 10.0]
    assert result(mixed, 1)["error"]["code"] == code
    assert scorer.seen == ["grey", "grey"]


async def test_raw_pixels_of_the_wrong_length() -> None:
    image = {"shape": [4, 4, 3], "data": b"\0" * 47}
    body = msgspec.msgpack.encode({"items": [{"image": image, "prompt": "grey"}]})
    async with service(Brightness()) as client:
        response = await client.post("/v1/score", content=body, headers={"Content-Type": "application/msgpack"})
    assert response.status_code == 422
    assert result(response)["error"]["code"] == "bad_image"


async def test_metadata_of_a_form_that_is_no_json() -> None:
    async with service(Brightness()) as client:
        for text in ("{oops", '{"a": NaN}', "[1]"):
            data = {"prompt": "grey", "metadata": text}
            response = await client.post("/v1/score", files={"image": ("x.png", png())}, data=data)
            assert response.status_code == 422
            assert result(response)["error"]["code"] == "bad_metadata"


async def test_an_unknown_reward_names_item_and_reward() -> None:
    items = [json_item(), json_item(rewards=["brightness", "beauty"])]
    async with service(Brightness()) as client:
        document = assert_problem(await client.post("/v1/score", json={"items": items}), 422)
    assert (document["item"], document["reward"], document["code"]) == (1, "beauty", "unknown_reward")


async def test_refusals_of_the_request() -> None:
    json_type = {"Content-Type": "application/json"}
    body = json.dumps({"items": [json_item()]}).encode()
    async with service(Brightness(), limits=Limits(max_body_bytes=2000, max_items=2)) as client:
        squeezed = await client.post(
            "/v1/score", content=gzip.compress(body), headers={**json_type, "Content-Encoding": "gzip"}
        )
        assert_problem(squeezed, 415)
        assert_problem(await client.post("/v1/score", content=b"x" * 2001, headers=json_type), 413)
        assert_problem(await client.post("/v1/score", content=chunks(40), headers=json_type), 413)
        form = await client.post("/v1/score", files={"image": ("x.png", b"x" * 3000)}, data={"prompt": "grey"})
        assert_problem(form, 413)
        assert_problem(await client.post("/v1/score", json={"items": [{}] * 3}), 413)
        assert_problem(await client.post("/v1/score", content=b"{", headers=json_type), 400)
        assert_problem(await client.post("/v1/score", content=body), 415)
        assert_problem(await client.post("/v1/score", json={"items": [json_item(weight=1)]}), 422)
        assert_problem(await client.post("/v1/score", json={"items": [json_item()], "model": "x"}), 422)
        late = await client.post("/v1/score", content=body, headers={**json_type, "X-Deadline-Ms": "soon"})
        assert_problem(late, 422)
        assert_problem(await client.get("/v1/score"), 405)
        assert_problem(await client.get("/nothing"), 404)


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 100


async def test_a_body_that_trickles_in_is_given_up() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    async with service(Brightness(), limits=Limits(body_seconds=0.05)) as client:
        headers = {"Content-Type": "application/json"}
        assert_problem(await client.post("/v1/score", content=trickle(), headers=headers), 408)


async def test_a_poison_item_fails_alone() -> None:
    items = [json_item(), json_item(prompt="poison"), json_item()]
    async with service(Brightness()) as client:
        response = await client.post("/v1/score", json={"items": items})
    assert response.status_code == 200
    assert [result(response, i).get("score") for i in range(3)] == [10.0, None, 10.0]
    assert result(response, 1)["error"]["code"] == "scorer_failed"


async def test_a_deadline_that_passes_is_504_and_leaves_the_queue() -> None:
    scorer = Brightness()
    scorer.gate.clear()
    async with service(scorer) as client:
        blocking = asyncio.create_task(client.post("/v1/score", json={"items": [json_item(prompt="first")]}))
        assert await asyncio.to_thread(scorer.entered.wait, 5)
        headers = {"X-Deadline-Ms": "60"}
        late = await client.post("/v1/score", json={"items": [json_item(prompt="late")]}, headers=headers)
        assert late.status_code == 504
        assert result(late)["error"]["code"] == "deadline"
        scorer.gate.set()
        assert (await blocking).status_code == 200
    assert scorer.seen == ["first"]


async def test_a_client_that_hangs_up_frees_its_place() -> None:
    scorer = Brightness()
    scorer.gate.clear()
    app = create_app(scorer, queue_items=1)
    gone = asyncio.Event()
    body = json.dumps({"items": [json_item(prompt="abandoned")]}).encode()

    async def hang_up_when_told(messages: list[dict[str, Any]]) -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def call(messages: list[dict[str, Any]]) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": headers, "query_string": b""}

        async def send(message: Any) -> None: ...

        await app(scope, lambda: hang_up_when_told(messages), send)

    async with started(app) as client:
        await readiness(client, "ready\n")
        first = asyncio.create_task(client.post("/v1/score", json={"items": [json_item(prompt="first")]}))
        assert await asyncio.to_thread(scorer.entered.wait, 5)
        abandoned = asyncio.create_task(call([{"type": "http.request", "body": body, "more_body": False}]))
        await asyncio.sleep(0.05)
        gone.set()
        await asyncio.wait_for(abandoned, 2)
        scorer.gate.set()
        assert (await first).status_code == 200
    assert scorer.seen == ["first"]


async def test_a_full_queue_is_429_with_a_time_to_return() -> None:
    scorer = Brightness()
    scorer.gate.clear()
    async with service(scorer, queue_items=1) as client:
        waiting = [asyncio.create_task(client.post("/v1/score", json={"items": [json_item()]}))]
        assert await asyncio.to_thread(scorer.entered.wait, 5)
        waiting.append(asyncio.create_task(client.post("/v1/score", json={"items": [json_item()]})))
        await asyncio.sleep(0.05)
        full = await client.post("/v1/score", json={"items": [json_item()]})
        assert_problem(full, 429)
        assert int(full.headers["retry-after"]) >= 1
        scorer.gate.set()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200]


class Cold(Brightness):
    """Loads when told to, then warms up when told to, or fails at either."""

    def __init__(self, failing: str = "") -> None:
        super().__init__()
        self.loaded, self.warm = threading.Event(), threading.Event()
        self.failing = failing
        self.threads: set[int] = set()

    def load(self) -> None:
        self._reach("load", self.loaded)

    def warm_up(self) -> None:
        self._reach("warm_up", self.warm)

    def _reach(self, step: str, reached: threading.Event) -> None:
        self.threads.add(threading.get_ident())
        if self.failing == step:
            raise OSError("no weights in /models")
        if self.failing == f"{step} badly":
            raise ZeroDivisionError("by zero")
        assert self.failing or reached.wait(5)


async def test_ready_only_when_loaded_and_warm() -> None:
    scorer = Cold()
    app = create_app(scorer)
    async with started(app) as client:
        await readiness(client, "the scorer is loading")
        assert (await client.get("/livez")).status_code == 200
        assert_problem(await client.get("/readyz"), 503)
        scorer.loaded.set()
        await readiness(client, "the scorer is warming up")
        assert_problem(await client.post("/v1/score", json={"items": [json_item()]}), 503)
        scorer.warm.set()
        await readiness(client, "ready\n")
        assert (await client.post("/v1/score", json={"items": [json_item()]})).status_code == 200
        assert app.state.failure() is None
    assert len(scorer.threads) == 1
    assert threading.get_ident() not in scorer.threads


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        ("load", "failed while loading: no weights in /models"),
        ("warm_up", "failed while warming up: no weights in /models"),
        ("warm_up badly", "failed while warming up: ZeroDivisionError: by zero"),
    ],
)
async def test_a_failure_to_load_is_told(failing: str, words: str) -> None:
    app = create_app(Cold(failing))
    async with started(app) as client:
        await readiness(client, words)
        assert (await client.get("/livez")).status_code == 200
        assert words in assert_problem(await client.post("/v1/score", json={"items": [json_item()]}), 503)["detail"]
        assert app.state.failure() == words


async def test_the_token_guards_v1_and_nothing_else() -> None:
    async with service(Brightness(), token="secret") as client:
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200
        refused = await client.post("/v1/score", json={"items": [json_item()]})
        assert_problem(refused, 401)
        assert refused.headers["www-authenticate"] == "Bearer"
        for header in ("Bearer wrong", "secret", "Bearer sécret"):
            refused = await client.get("/v1/info", headers={"Authorization": header.encode()})
            assert_problem(refused, 401)
        assert (await client.get("/v1/info", headers={"Authorization": "Bearer secret"})).status_code == 200


async def test_information_metrics_and_openapi() -> None:
    async with service(Brightness()) as client:
        await client.post("/v1/score", json={"items": [json_item(), json_item(prompt="poison")]})
        info = (await client.get("/v1/info")).json()
        metrics = (await client.get("/metrics")).text
        schema = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
    assert info == {
        "name": "brightness",
        "version": "3",
        "range": [0.0, 255.0],
        "meaning": "mean of all channels",
        "metadata": "",
        "batch_limit": 4,
        "batch_invariant": False,
    }
    assert 'reward_requests_total{code="200",reward="brightness"} 1.0' in metrics
    assert 'reward_items_total{outcome="ok",reward="brightness"} 1.0' in metrics
    assert 'reward_items_total{outcome="scorer_failed",reward="brightness"} 1.0' in metrics
    assert "reward_queue_depth_items 0.0" in metrics
    encodings = schema["paths"]["/v1/score"]["post"]["requestBody"]["content"]
    assert set(encodings) == {"multipart/form-data", "application/json", "application/msgpack"}


async def test_our_client_against_the_app() -> None:
    app = create_app(Brightness(), token="secret")
    items = [Item(np.full((4, 4, 3), v, np.uint8), "grey", {"v": v}) for v in range(9)]
    async with started(app) as plain_client:
        await readiness(plain_client, "ready\n")
        transport = httpx.ASGITransport(app)
        async with RewardClient("http://service", token="secret", transport=transport) as client:
            outcomes = await client.score(items)
            (info,) = await client.rewards()
            with pytest.raises(RewardRejected, match="beauty"):
                await client.score([Item(items[0].image, "grey", rewards=("beauty",))])
    assert outcomes == [{"brightness": Score(float(v), {"metadata": {"v": v}})} for v in range(9)]
    assert info.name == "brightness"
    assert not any(isinstance(o, ItemError) for results in outcomes for o in results.values())
