"""Spans of gateway and service, read from the SDK's in-memory exporter."""

import asyncio
import logging
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gateway.app import create_app as create_gateway
from gateway.config import GatewayConfig
from reward_api import Item, RewardClient, Score, tracing
from reward_services.service import create_app as create_service

pytestmark = pytest.mark.unit


class Red:
    name, version = "red", "1"

    def score(self, batch):
        return [float(item.image[0, 0, 0]) for item in batch]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)
    provider.shutdown()


def item(red: int) -> Item:
    return Item(np.full((2, 2, 3), red, np.uint8), "a", rewards=("red",))


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def score_two_requests_in_one_batch() -> None:
    service = create_service(Red())
    settings = {"rewards": {"red": {"replicas": ["http://s"], "max_batch": 4, "max_delay_ms": 5000}}}
    config = GatewayConfig.model_validate({**settings, "probe_interval_s": 0.02})
    async with service.router.lifespan_context(service):
        app = create_gateway(config, transport=httpx.ASGITransport(service))
        async with app.router.lifespan_context(app):
            client = RewardClient("http://g", transport=httpx.ASGITransport(app))
            async with client, asyncio.timeout(30):
                first, second = await asyncio.gather(client.score([item(1), item(2)]), client.score([item(3), item(4)]))
    assert [one["red"] for one in (*first, *second)] == [Score(float(red)) for red in (1, 2, 3, 4)]


async def test_a_batch_links_to_the_requests_it_serves(spans: InMemorySpanExporter):
    await score_two_requests_in_one_batch()
    (batch,) = named(spans, "batch red")
    (scored,) = named(spans, "score red")
    posts = named(spans, "POST /v1/score")
    at_service = [span for span in posts if span.parent is not None]
    at_gateway = [span for span in posts if span.parent is None]
    assert len(at_gateway) == 2
    # one batch for both requests: a trace of its own, with a link to each
    assert batch.parent is None
    assert {link.context.span_id for link in batch.links} == {span.context.span_id for span in at_gateway}
    assert batch.context.trace_id not in {span.context.trace_id for span in at_gateway}
    assert dict(batch.attributes or {}) == {"reward": "red", "replica": "http://s", "items": 4}
    # the replica's request continues the batch's trace, and its scorer links to it
    (replica,) = at_service
    assert replica.parent is not None
    assert replica.parent.span_id == batch.context.span_id
    assert [link.context.span_id for link in scored.links] == [replica.context.span_id]
    assert all((span.attributes or {})["http.response.status_code"] == 200 for span in posts)


async def test_a_request_continues_the_callers_trace_and_shows_its_failure(spans: InMemorySpanExporter):
    config = GatewayConfig.model_validate({"rewards": {"red": {"replicas": ["http://s"], "no_replica_grace_s": 0}}})

    class Nobody(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            raise httpx.ConnectError("refused")

    app = create_gateway(config, transport=Nobody())
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g")
    async with app.router.lifespan_context(app), client:
        sent = {"items": [{"image": {"base64": ""}, "prompt": "a", "rewards": ["red"]}]}
        await client.post("/v1/score", json=sent, headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
        await client.get("/readyz")
    (span,) = spans.get_finished_spans()  # probes of readiness are not traced
    assert f"{span.context.trace_id:032x}" == trace_id
    assert (span.attributes or {})["http.response.status_code"] == 422
    assert span.status.status_code is StatusCode.UNSET


async def test_without_a_provider_there_is_no_trace_of_tracing():
    assert tracing.current_span() is None
    assert tracing.outgoing_headers() == {}
    await score_two_requests_in_one_batch()


def test_it_is_off_without_an_endpoint_and_says_so_without_the_sdk(monkeypatch, caplog):
    for name in tracing.ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    tracing.start_from_environment("gateway")
    assert tracing._tracer is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING):
        tracing.start_from_environment("gateway")
    assert tracing._tracer is None
    assert "flow-grpo[otel]" in caplog.text


def test_an_endpoint_turns_it_on(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    providers = []
    monkeypatch.setattr(tracing, "use", providers.append)
    tracing.start_from_environment("gateway")
    (provider,) = providers
    assert provider.resource.attributes["service.name"] == "gateway"
    provider.shutdown()
