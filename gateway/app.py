"""The gateway's HTTP face: the same `POST /v1/score` as a reward service, for all rewards."""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import httpx
import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.background import BackgroundTask

from gateway.admin import install_admin
from gateway.clients import client_of
from gateway.config import GatewayConfig, futile_settings
from gateway.jobs.jobs import Jobs
from gateway.jobs.routes import jobs_router
from gateway.page.page import Page
from gateway.page.router import page_router
from gateway.reload import following, stamp_of
from gateway.scoring import Gateway
from reward_api import EnvelopeError, ItemError, Limits, Outcome
from reward_api.http import (
    SCORE_OPENAPI,
    ParsedRequest,
    ScoringApp,
    Tokens,
    check_token,
    install_middleware,
    parse_score_request,
    problem,
    score_response,
    unless_hung_up,
)
from reward_api.openapi import problems

logger = logging.getLogger(__name__)


def create_app(
    config: GatewayConfig,
    *,
    token: Tokens = None,
    limits: Limits | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    config_file: Path | None = None,
) -> FastAPI:
    """The app: /v1/score, /v1/jobs, /v1/rewards, /v1/admin/replicas, the page at /, /livez, /readyz, /metrics, /docs.

    With a `token` (or several by client name), /v1/* asks for it as bearer token. `transport` replaces the network to
    the services in tests. The replicas listed in `config_file` are taken over whenever it changes, and on SIGHUP.
    """
    bounds = limits or Limits()
    seen = stamp_of(config_file)
    gateway = Gateway(config, transport=transport)
    page = Page(config.page, gateway.dispatchers)
    jobs = None if config.jobs is None else Jobs(config.jobs, gateway.metrics.registry)
    for sentence in futile_settings(config):
        logger.warning("%s", sentence)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work = jobs.running() if jobs else nullcontext()
        async with gateway, page, following(config_file, gateway, seen), work:
            yield

    app = ScoringApp(title="Reward gateway", description="Scores images by several rewards", lifespan=lifespan)
    app.state.gateway = gateway
    app.state.page, app.state.jobs = page, jobs
    if config.page.enabled:
        app.include_router(page_router(page, token))
    app.include_router(jobs_router(jobs, gateway.dispatchers, partial(check_token, token=token), bounds))

    @app.post("/v1/score", summary="Score images against their prompts", openapi_extra=SCORE_OPENAPI)
    async def score(request: Request) -> Response:
        client = client_of(request, check_token(request, token))
        started = time.monotonic()
        parsed = await parse_score_request(request, bounds)
        try:
            outcomes = await unless_hung_up(request, gateway.score(parsed, client))
        except EnvelopeError as error:
            _count(gateway, parsed, error.problem.status, [])
            raise
        response = score_response(outcomes, request.headers.get("accept", ""))
        if response.status_code == 503:
            response.headers["Retry-After"] = str(gateway.retry_after_s)
        taken_s = time.monotonic() - started

        async def note() -> None:
            _count(gateway, parsed, response.status_code, outcomes)
            if config.page.enabled:
                page.answered(parsed.items, outcomes, taken_s)

        response.background = BackgroundTask(note)  # the answer goes first
        return response

    @app.get("/v1/rewards", summary="The rewards served here", responses=problems(401))
    async def rewards(request: Request) -> Response:
        check_token(request, token)
        return Response(msgspec.json.encode({"rewards": gateway.rewards()}), media_type="application/json")

    @app.get("/livez", summary="Whether the process runs", response_class=PlainTextResponse)
    async def livez() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", summary="Whether any reward has a replica; how many each has", responses=problems(503))
    async def readyz() -> Response:
        up = gateway.replicas_up()
        if gateway.draining:
            return problem(503, "Not ready", "the gateway is shutting down", replicas_up=up)
        if not any(up.values()):
            headers = {"Retry-After": str(gateway.retry_after_s)}
            return problem(503, "Not ready", "no reward has a replica that is up", headers=headers, replicas_up=up)
        return Response(msgspec.json.encode({"replicas_up": up}), media_type="application/json")

    install_admin(app, gateway, token)

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    install_middleware(app, score)
    return app


def _count(gateway: Gateway, request: ParsedRequest, status: int, outcomes: Sequence[Mapping[str, Outcome]]) -> None:
    """Counts a request under each reward it asks for. Names nobody serves are not turned into labels."""
    for name in {name for asked in request.rewards for name in asked if name in gateway.dispatchers}:
        gateway.metrics.requests.labels(name, status).inc()
    ends = Counter(
        (name, str(outcome.code) if isinstance(outcome, ItemError) else "ok")
        for results in outcomes
        for name, outcome in results.items()
    )
    for (name, end), count in ends.items():
        gateway.metrics.items.labels(name, end).inc(count)
