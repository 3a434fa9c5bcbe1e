"""A request's id on its way through gateway and service, in answers, in headers and in the log."""

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.app import create_app as create_gateway
from gateway.config import GatewayConfig
from reward_api import Item, logs
from reward_api.correlation import LONGEST, identify, joined, request_id
from reward_api.wire import MSGPACK, encode_request
from reward_services.service import create_app as create_service

pytestmark = pytest.mark.unit

BODY = encode_request([Item(np.zeros((2, 2, 3), np.uint8), prompt, rewards=("zero",)) for prompt in "abc"])


class Zero:
    name, version = "zero", "1"

    def score(self, batch):
        logging.getLogger("zero").warning("scoring %d", len(batch))
        return [0.0] * len(batch)


@asynccontextmanager
async def gateway_before_service() -> AsyncIterator[tuple[httpx.AsyncClient, list[httpx.Request]]]:
    service = create_service(Zero())
    sent: list[httpx.Request] = []

    class Seen(httpx.ASGITransport):
        async def handle_async_request(self, request):
            sent.append(request)
            return await super().handle_async_request(request)

    config = GatewayConfig.model_validate({"rewards": {"zero": {"replicas": ["http://s"]}}, "probe_interval_s": 0.02})
    async with service.router.lifespan_context(service):
        app = create_gateway(config, transport=Seen(service))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://g") as client:
                yield client, sent


async def score(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/v1/score", content=BODY, headers={"Content-Type": MSGPACK, **headers})


async def test_the_callers_id_comes_back_and_reaches_the_replica():
    async with gateway_before_service() as (client, sent):
        answer = await score(client, **{"X-Request-ID": "epoch-3.step_7"})
        assert answer.status_code == 200
        made = await score(client)
        refused = await client.post("/v1/score", content=b"?", headers={"X-Request-ID": "mine"})
    assert answer.headers["x-request-id"] == "epoch-3.step_7"
    assert re.fullmatch("[0-9a-f]{16}", made.headers["x-request-id"])
    assert refused.headers["x-request-id"] == "mine"
    passed_on = [request.headers["x-request-id"] for request in sent if request.url.path == "/v1/score"]
    assert passed_on == ["epoch-3.step_7", made.headers["x-request-id"]]


async def test_an_answer_to_a_crash_has_its_id_too(monkeypatch):
    async with gateway_before_service() as (client, _):
        monkeypatch.setattr("gateway.app.score_response", lambda *_: 1 / 0)
        answer = await score(client, **{"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")


@given(st.text(max_size=40))
def test_an_id_is_kept_or_replaced_but_never_breaks_a_header_or_a_log(text):
    kept = identify(text)
    assert re.fullmatch(r"[!-~]+", kept)
    assert kept == text or re.fullmatch("[0-9a-f]{16}", kept)


@given(st.lists(st.text("abc1-", min_size=1, max_size=300), max_size=20))
def test_the_ids_of_a_batch_fit_into_a_header(ids):
    text = joined(ids)
    assert len(text) <= LONGEST
    named = text.split(",") if text else []
    assert len(set(named)) == len(named)
    assert set(named) <= set(ids)
    if sum(map(len, ids)) + len(ids) <= LONGEST:
        assert named == list(dict.fromkeys(ids))
    if text:
        assert identify(text) == text


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.setLevel(logging.INFO)
    yield root
    root.handlers = handlers
    root.setLevel(level)


async def test_json_lines_of_gateway_service_and_scorer_name_the_request(root_logger, capsys):
    logs.configure("json")
    async with gateway_before_service() as (client, _):
        await score(client, **{"X-Request-ID": "mine"})
        await client.get("/v1/x%0Aforged", headers={"X-Request-ID": "other"})
        await client.get("/livez")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    lines = [line for line in lines if line["logger"] != "httpx"]  # clients write to it as well
    mine = [line for line in lines if line.get("request_id") == "mine"]
    # the scorer's own line, then the service's, then the gateway's
    assert [line["logger"] for line in mine] == ["zero", "reward_api.correlation", "reward_api.correlation"]
    assert mine[0]["event"] == "scoring 3"
    assert (mine[-1]["method"], mine[-1]["path"], mine[-1]["status"]) == ("POST", "/v1/score", 200)
    assert mine[-1]["s"] >= 0
    assert all(line["level"] == "info" and line["timestamp"].endswith("Z") for line in mine[1:])
    assert [line["path"] for line in lines if line.get("request_id") == "other"] == ["/v1/x%0Aforged"]
    assert not any("livez" in line["event"] for line in lines)


def test_an_exception_is_one_line_of_json(root_logger, capsys):
    logs.configure("json")
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        logging.getLogger("x").exception("it failed: %s", "ü")
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told["event"] == "it failed: ü"
    assert "ValueError: bad\nnews" in told["exception"]
    assert "request_id" not in told


def test_text_lines_end_with_the_id_where_there_is_one(root_logger, capsys):
    logs.configure("text")
    logging.getLogger("x").warning("outside")
    token = request_id.set("a,b")
    logging.getLogger("x").warning("inside")
    request_id.reset(token)
    outside, inside = capsys.readouterr().err.splitlines()
    assert outside.endswith("WARNING x: outside")
    assert inside.endswith("WARNING x: inside [a,b]")
