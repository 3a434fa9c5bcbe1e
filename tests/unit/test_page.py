"""The page's files and its stream, before services that are small functions."""

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.page.router import FOLDER
from gateway.page.thumbnails import EDGE_PIXELS, Thumbnails, shrink
from reward_api import Item, ItemError, Limits, Score
from reward_api.wire import MSGPACK, decode_request, encode_request, encode_response

pytestmark = pytest.mark.unit


class Services(httpx.AsyncBaseTransport):
    """Every address is a ready service whose score is the red of the first pixel; 13 has none."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            return httpx.Response(200)
        if request.url.path == "/v1/info":
            return httpx.Response(200, json={"name": "red", "version": "7", "range": [0, 255], "meaning": "redness"})
        parsed = decode_request(request.headers["content-type"], await request.aread(), Limits())
        reds = [int(item.image[0, 0, 0]) for item in parsed.items if isinstance(item, Item)]
        outcomes = [{"red": ItemError("missing_text", "no text") if red == 13 else Score(red)} for red in reds]
        body, kind = encode_response(outcomes, MSGPACK)
        return httpx.Response(200, content=body, headers={"content-type": kind})


def config(**page: object) -> GatewayConfig:
    rewards = {"red": {"replicas": ["http://a", "http://b"]}}
    return GatewayConfig.model_validate({"rewards": rewards, "probe_interval_s": 60, "page": page})


@asynccontextmanager
async def running(token: str | None = None, **page: object) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    app = create_app(config(**page), transport=Services(), token=token)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield app, client


class Watcher:
    """Reads the stream as a browser would; httpx.ASGITransport waits for whole answers, so it cannot."""

    def __init__(self, app: FastAPI, headers: Mapping[str, str] | None = None) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.gone = asyncio.Event()
        raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": "GET", "path": "/v1/page/events", "headers": raw, "query_string": b""}
        self.call = asyncio.create_task(app({**scope, "asgi": {"spec_version": "2.3"}}, self._receive, self.sent.put))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def status(self) -> int:
        async with asyncio.timeout(10):
            return int((await self.sent.get())["status"])

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(10):
            lines = (await self.sent.get())["body"].decode().strip().split("\n")
        return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))

    async def leave(self) -> None:
        self.gone.set()
        async with asyncio.timeout(10):
            await self.call


def score_body(*reds: int, rewards: tuple[str, ...] = ("red",)) -> bytes:
    return encode_request(
        [Item(np.full((300, 200, 3), red, np.uint8), f"image {red}", rewards=rewards) for red in reds]
    )


async def post(client: httpx.AsyncClient, *reds: int) -> None:
    answer = await client.post("/v1/score", content=score_body(*reds), headers={"Content-Type": MSGPACK})
    assert answer.status_code in (200, 422)


async def test_the_page_and_its_files_are_served_under_a_strict_policy():
    async with running(token="secret") as (_, client):
        index = await client.get("/")
        named = set(re.findall(r'"/(page/[^"]+)"', index.text))
        imported = {
            f"page/{name}" for script in FOLDER.glob("*.js") for name in re.findall(r'"\./(.+)"', script.read_text())
        }
        files = [await client.get(f"/{name}") for name in sorted(named | imported)]
        absent = await client.get("/page/page.py")
    assert len(named | imported) == len(list(FOLDER.iterdir())) - 1  # every file but index.html is used
    for answer in (index, *files):
        assert answer.status_code == 200, answer.url
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert absent.status_code == 404
    assert absent.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere_and_no_data_becomes_markup(path):
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"""(src|href|url|from|fetch)\s*[=(]?\s*["'(](https?:)?//""", text)
    if path.suffix == ".html":  # the policy would refuse these
        assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", text)


async def test_the_stream_begins_with_all_there_is():
    async with running() as (app, client):
        await post(client, 40, 13)
        watcher = Watcher(app)
        assert await watcher.status() == 200
        name, hello = await watcher.next()
        await watcher.leave()
    assert name == "hello"
    (reward,) = hello["rewards"]
    assert (reward["name"], reward["version"], reward["range"]) == ("red", "7", [0, 255])
    assert [(replica["url"], replica["state"]) for replica in reward["replicas"]] == [
        ("http://a", "up"),
        ("http://b", "up"),
    ]
    assert (reward["queue_items"], reward["queue_items_limit"]) == (0, 8192)
    assert len(hello["history"]["red"]["items"]) == len(hello["history"]["red"]["p95_s"]) == 120


async def test_images_and_rates_follow_as_they_change():
    async with running() as (app, client):
        watcher = Watcher(app)
        assert await watcher.status() == 200
        _, hello = await watcher.next()
        await post(client, 40, 13)
        events: dict[str, Any] = {}
        while not ({"image", "rewards"} <= events.keys()):
            name, data = await watcher.next()
            events[name] = data
        await watcher.leave()
    assert hello["images"] == []
    image = events["image"]
    assert (image["prompt"], image["width"], image["height"]) == ("image 13", 200, 300)
    assert image["results"] == [{"reward": "red", "score": None, "error": "missing_text"}]
    assert Image.open(io.BytesIO(base64.b64decode(image["webp"]))).format == "WEBP"
    (reward,) = events["rewards"]
    assert reward["items_per_s"] == 2 / 5
    assert reward["errors_per_s"] == 1 / 5
    assert reward["p95_s"] > 0


async def test_the_off_switch_for_images_keeps_none(monkeypatch):
    monkeypatch.setattr("gateway.page.thumbnails.shrink", lambda image: pytest.fail("an image was looked at"))
    async with running(images=0) as (app, client):
        await post(client, 40)
        watcher = Watcher(app)
        await watcher.status()
        _, hello = await watcher.next()
        await watcher.leave()
    assert hello["images"] == []


async def test_without_the_page_there_is_none_of_it():
    async with running(enabled=False) as (_, client):
        answers = [await client.get(path) for path in ("/", "/page/page.js", "/v1/page/events")]
        await post(client, 40)
    assert [answer.status_code for answer in answers] == [404, 404, 404]


async def test_the_stream_asks_for_the_token_and_the_files_do_not():
    async with running(token="secret") as (app, client):
        closed = await client.get("/v1/page/events")
        watcher = Watcher(app, {"Authorization": "Bearer secret"})
        assert await watcher.status() == 200
        await watcher.leave()
    assert closed.status_code == 401


async def test_more_viewers_than_places_are_told_when_to_return():
    async with running(viewers=1) as (app, client):
        first = Watcher(app)
        assert await first.status() == 200
        refused = await client.get("/v1/page/events")
        await first.leave()
        second = Watcher(app)
        assert await second.status() == 200
        await second.leave()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
    assert "page.viewers" in refused.json()["detail"]


async def test_a_viewer_that_leaves_before_the_first_event_frees_its_place():
    async with running(viewers=1) as (app, _):
        for _ in range(3):
            watcher = Watcher(app)
            watcher.gone.set()
            await watcher.leave()
            assert await watcher.status() == 200


async def test_the_end_of_the_gateway_ends_the_stream():
    async with running() as (app, _):
        watcher = Watcher(app)
        assert await watcher.status() == 200
    async with asyncio.timeout(10):
        await watcher.call


def test_a_thumbnail_is_small_and_keeps_its_proportions():
    wide = np.zeros((512, 2048, 3), np.uint8)
    wide[:, 1024:] = 255
    image = Image.open(io.BytesIO(shrink(wide)))
    assert image.size == (EDGE_PIXELS, EDGE_PIXELS // 4)
    pixels = np.asarray(image.convert("RGB"))
    assert pixels[:, :50].max() < 20
    assert pixels[:, -50:].min() > 235
    tiny = Image.open(io.BytesIO(shrink(np.zeros((1, 1, 3), np.uint8))))
    assert tiny.size == (1, 1)


async def test_thumbnails_are_taken_at_a_bounded_pace_and_the_oldest_go():
    now, made = [0.0], []
    ring = Thumbnails(2, made.append, pause_s=1.0, clock=lambda: now[0])
    for step in range(8):
        now[0] = step / 2
        ring.offer(Item(np.full((4, 4, 3), step, np.uint8), "p" * 500), {"red": Score(float(step))})
        await ring.aclose()
    assert [one.results[0].score for one in made] == [0.0, 2.0, 4.0, 6.0]
    assert [one.results[0].score for one in ring.kept] == [4.0, 6.0]
    assert [one.number for one in made] == [1, 2, 3, 4]
    assert len(made[0].prompt) == 160
    assert len(msgspec.json.encode(made[0])) < 4000
