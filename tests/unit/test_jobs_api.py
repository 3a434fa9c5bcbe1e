"""/v1/jobs of a gateway before services that are small functions; the chunks are scored here, not by Celery."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from test_gateway_app import FakeServices, item, png

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.jobs.chunk import score_claim
from gateway.jobs.jobs import Jobs
from gateway.jobs.leases import Leases
from reward_api import Item, RewardClient
from reward_api.wire import MSGPACK, encode_request

pytestmark = pytest.mark.unit

PROBLEM = "application/problem+json"


class Desk:
    """A gateway and a worker in one process."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.app = app
        self.client = client
        self.jobs: Jobs = app.state.jobs

    async def post(self, *items: Item, **headers: str) -> httpx.Response:
        body = encode_request(items)
        return await self.client.post("/v1/jobs", content=body, headers={"Content-Type": MSGPACK} | headers)

    async def finish(self) -> None:
        """Scores everything, also what is with a worker that is not there."""
        await self.work(later_s=self.jobs.config.lease_s + 1)

    async def work(self, chunks: int = 1000, *, later_s: float = 0.0) -> None:
        """Scores up to so many of the chunks that are due."""
        leases = Leases(*self.jobs._engines, self.jobs.config)
        for message in leases.due(time.time() + later_s)[:chunks]:
            claim = leases.claim(message.chunk_id, message.token, time.time())
            assert claim is not None
            async with RewardClient("http://gateway", transport=httpx.ASGITransport(self.app)) as client:
                outcomes, versions = await score_claim(claim, leases, self.jobs.store, client)
            leases.record(claim, outcomes, versions, time.time())

    async def lines(self, job: str) -> list[dict[str, Any]]:
        answer = await self.client.get(f"/v1/jobs/{job}/results")
        assert answer.headers["content-type"] == "application/jsonl"
        return [json.loads(line) for line in answer.text.splitlines()]


@asynccontextmanager
async def desk(folder: Path, token: str | None = None, **settings: object) -> AsyncIterator[Desk]:
    routes = {name: {"replicas": [f"http://{name}"], "no_replica_grace_s": 0.0} for name in ("count", "style")}
    jobs = {"folder": folder, "sweep_s": 1000, "chunk_items": 2} | settings
    config = GatewayConfig.model_validate({"rewards": routes, "probe_interval_s": 60, "jobs": jobs})
    app = create_app(config, transport=FakeServices(), token=token)
    async with app.router.lifespan_context(app):
        await asyncio.to_thread(app.state.jobs.sweeper.once)  # the only sweep of this test
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            yield Desk(app, client)


async def test_a_job_from_its_start_to_its_download(tmp_path):
    async with desk(tmp_path) as here:
        answer = await here.post(item(1, "count"), item(2, "style", "count"), item(13, "style"))
        assert answer.status_code == 202
        job = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert (job["state"], job["items"]) == ("queued", 3)
        assert job["results"] == {"scored": 0, "failed": 0, "pending": 4}
        assert (await here.lines(job["id"])) == []

        await here.work(1)
        job = (await here.client.get(answer.headers["location"])).json()
        assert (job["state"], job["results"]["pending"], job["expires_at"]) == ("running", 1, None)
        assert [line["index"] for line in await here.lines(job["id"])] == [0, 1]

        await here.finish()
        job = (await here.client.get(answer.headers["location"], params={"wait": 0})).json()
        assert (job["state"], job["results"]) == ("done", {"scored": 3, "failed": 1, "pending": 0})
        kept = datetime.fromisoformat(job["expires_at"]) - datetime.fromisoformat(job["finished_at"])
        assert kept.total_seconds() == pytest.approx(7 * 86400)
        assert await here.lines(job["id"]) == [
            {"index": 0, "results": {"count": {"score": 1.0, "details": {"by": "count"}}}},
            {
                "index": 1,
                "results": {
                    "count": {"score": 2.0, "details": {"by": "count"}},
                    "style": {"score": 2.0, "details": {"by": "style"}},
                },
            },
            {"index": 2, "results": {"style": {"error": {"code": "missing_text", "message": "no quotes"}}}},
        ]


async def test_the_three_encodings_are_one_job_content(tmp_path):
    async with desk(tmp_path) as here:
        pixels = np.zeros((2, 2, 3), np.uint8)
        pixels[..., 0] = 5
        one = {"image": {"base64": base64.b64encode(png()).decode()}, "prompt": "a cat", "rewards": ["count"]}
        same = {"Idempotency-Key": "k"}
        answers = [
            await here.post(Item(pixels, "a cat", rewards=("count",)), **same),
            await here.client.post("/v1/jobs", json={"items": [one]}, headers=same),
            await here.client.post(
                "/v1/jobs",
                files={"image": ("x.png", png())},
                data={"prompt": "a cat", "rewards": "count"},
                headers=same,
            ),
        ]
        assert [answer.status_code for answer in answers] == [202, 202, 202]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len([path for path in (tmp_path / "images").rglob("*") if path.is_file()]) == 1
        other = await here.post(item(6, "count"), **same)
    assert (other.status_code, other.headers["content-type"]) == (422, PROBLEM)
    assert answers[0].json()["id"] in other.json()["detail"]


async def test_a_broken_item_is_an_error_of_its_own_and_the_rest_is_scored(tmp_path):
    async with desk(tmp_path) as here:
        wire = [
            {"image": {"base64": base64.b64encode(data).decode()}, "prompt": prompt, "rewards": ["count"]}
            for data, prompt in [(png(), "a cat"), (b"no image", "a cat"), (png(), "")]
        ]
        job = (await here.client.post("/v1/jobs", json={"items": wire})).json()
        await here.work()
        lines = await here.lines(job["id"])
    assert [line["results"]["count"].get("error", {}).get("code") for line in lines] == [
        None,
        "bad_image",
        "missing_prompt",
    ]


async def test_waiting_ends_with_the_job(tmp_path):
    async with desk(tmp_path) as here:
        job = (await here.post(item(1, "count"))).json()
        early = (await here.client.get(f"/v1/jobs/{job['id']}", params={"wait": 0.1})).json()
        assert early["state"] == "queued"
        waiting = asyncio.create_task(here.client.get(f"/v1/jobs/{job['id']}", params={"wait": 60}))
        await asyncio.sleep(0.05)
        await here.work()
        started = time.monotonic()
        assert (await waiting).json()["state"] == "done"
        assert time.monotonic() - started < 30


async def test_cancelling(tmp_path):
    async with desk(tmp_path) as here:
        job = (await here.post(*[item(number, "count") for number in range(6)])).json()
        url = f"/v1/jobs/{job['id']}"
        await here.work(1)
        first = (await here.client.delete(url)).json()
        again = (await here.client.delete(url)).json()
        await here.work()
        assert (first["state"], first["results"]) == ("cancelled", {"scored": 2, "failed": 0, "pending": 4})
        assert again == first == (await here.client.get(url)).json()
        results = await here.client.get(url + "/results")
        assert results.headers["x-job-state"] == "cancelled"
        assert len(results.text.splitlines()) == 2


async def test_the_list_is_newest_first_and_bounded(tmp_path):
    async with desk(tmp_path) as here:
        ids = [(await here.post(item(number, "count"))).json()["id"] for number in range(3)]
        listed = (await here.client.get("/v1/jobs", params={"limit": 2})).json()["jobs"]
    assert [job["id"] for job in listed] == ids[:0:-1]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/jobs/0123456789abcdef0123456789abcdef", 404, "removed 604800 s after its end"),
        ("/v1/jobs/no%00job", 404, "no job"),
        ("/v1/jobs/0123456789abcdef0123456789abcdef/results", 404, "no job"),
        ("/v1/jobs/0123456789abcdef0123456789abcdef?wait=61", 422, "wait must be a number from 0 to 60, got '61'"),
        ("/v1/jobs/0123456789abcdef0123456789abcdef?wait=nan", 422, "wait"),
        ("/v1/jobs?limit=0", 422, "limit"),
        ("/v1/jobs?limit=1.5", 422, "limit must be a integer"),
    ],
)
async def test_what_is_not_there_and_what_makes_no_sense(tmp_path, path: str, status: int, words: str):
    async with desk(tmp_path) as here:
        answer = await here.client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert words in answer.json()["detail"]


async def test_a_job_is_bounded_in_items_bytes_and_place(tmp_path):
    async with desk(tmp_path, max_items=3, max_bytes=1000, store_bytes=30) as here:
        answers = [
            await here.post(*[item(number, "count") for number in range(4)]),
            await here.post(Item(np.zeros((20, 20, 3), np.uint8), "a cat", rewards=("count",))),
            await here.post(*[item(number, "count") for number in range(3)]),
            await here.post(item(0, "count"), item(1, "count"), item(0, "style")),
        ]
    assert [answer.status_code for answer in answers] == [413, 413, 507, 202]
    assert "30 bytes" in answers[2].json()["detail"]


async def test_rewards_must_be_named_and_served(tmp_path):
    async with desk(tmp_path) as here:
        missing, unknown = await here.post(item(0)), await here.post(item(0, "count"), item(1, "beauty"))
    assert [missing.json()["code"], unknown.json()["code"]] == ["missing_rewards", "unknown_reward"]
    assert unknown.json()["item"] == 1
    assert "count, style" in missing.json()["detail"]


@pytest.mark.parametrize("key", ["", "k" * 256, "caf\u00e9"])
async def test_a_strange_key_is_refused(tmp_path, key: str):
    async with desk(tmp_path) as here:
        headers = {"Content-Type": MSGPACK.encode(), "Idempotency-Key": key.encode("latin-1")}
        answer = await here.client.post("/v1/jobs", content=encode_request([item(0, "count")]), headers=headers)
    assert answer.status_code == 422
    assert "Idempotency-Key" in answer.json()["detail"]


async def test_the_token_is_asked_for(tmp_path):
    async with desk(tmp_path, token="secret") as here:
        closed = [
            await here.post(item(0, "count")),
            *[await here.client.get(path) for path in ("/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/results")],
            await here.client.delete("/v1/jobs/x"),
        ]
        opened = await here.post(item(0, "count"), Authorization="Bearer secret")
    assert [answer.status_code for answer in closed] == [401] * 5
    assert opened.status_code == 202


async def test_a_gateway_without_jobs_says_so():
    routes = {"count": {"replicas": ["http://count"]}}
    app = create_app(GatewayConfig.model_validate({"rewards": routes}), transport=FakeServices())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client,
    ):
        answer = await client.post("/v1/jobs", json={})
    assert (answer.status_code, answer.headers["content-type"]) == (404, PROBLEM)
    assert "section `jobs`" in answer.json()["detail"]


async def test_a_job_outlives_its_gateway(tmp_path):
    async with desk(tmp_path) as here:
        job = (await here.post(*[item(number, "count") for number in range(4)])).json()["id"]
        await here.work(1)
    async with desk(tmp_path) as here:
        found = (await here.client.get(f"/v1/jobs/{job}")).json()
        assert (found["state"], found["results"]["scored"]) == ("running", 2)
        await here.finish()
        assert [line["results"]["count"]["score"] for line in await here.lines(job)] == [0, 1, 2, 3]


async def test_what_is_counted(tmp_path):
    async with desk(tmp_path) as here:
        await here.post(item(1, "count"), item(2, "count"))
        here.jobs.sweeper._count_at = 0.0
        await asyncio.to_thread(here.jobs.sweeper.once)
        metrics = (await here.client.get("/metrics")).text
    for line in (
        'reward_jobs{state="queued"} 1.0',
        'reward_jobs{state="done"} 0.0',
        "reward_job_results_pending 2.0",
        "reward_job_chunks_sent_total 1.0",
        "reward_job_chunks_sent_again_total 0.0",
    ):
        assert line in metrics


async def test_the_openapi_page_knows_jobs(tmp_path):
    async with desk(tmp_path) as here:
        paths = (await here.client.get("/openapi.json")).json()["paths"]
    assert {"/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/results"} <= paths.keys()
    assert {"202", "413", "422", "507"} <= paths["/v1/jobs"]["post"]["responses"].keys()
