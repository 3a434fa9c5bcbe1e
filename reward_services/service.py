"""One HTTP app around any scorer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from reward_api import EnvelopeError, ErrorCode, Item, ItemError, Limits, Outcome, Score, Scorer
from reward_api.handover import Handover
from reward_api.http import (
    SCORE_OPENAPI,
    ParsedRequest,
    ScoringApp,
    check_token,
    install_middleware,
    parse_score_request,
    problem,
    score_response,
    serve,
    unless_hung_up,
)
from reward_api.openapi import problems
from reward_api.problems import unknown_reward
from reward_services.metrics import ServiceMetrics
from reward_services.scoring import QueueFull, ScorerThread

__all__ = ["create_app", "serve"]

LONGEST_WAIT_S = 300.0


def create_app(
    scorer: Scorer,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    queue_items: int = 1024,
    queue_bytes: int = 512 * 2**20,
    handover: Handover | None = None,
) -> FastAPI:
    """The app of one reward: /v1/score, /v1/info, /livez, /readyz, /metrics, OpenAPI at /docs.

    The scorer is loaded, warmed up and called from one thread of its own, started with the app. Until it is warm,
    /readyz says what it waits for or why it failed; `app.state.failure()` is that failure or None. With a `token`,
    /v1/* asks for it as bearer token. A worker with a `handover` is ready once all workers have been.
    """
    bounds = limits or Limits()
    metrics = ServiceMetrics()
    when_warm = handover.report_warm if handover else None
    thread = ScorerThread(scorer, metrics, queue_items=queue_items, queue_bytes=queue_bytes, when_warm=when_warm)
    name = thread.info.name

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        thread.start()
        yield
        await asyncio.to_thread(thread.stop)

    app = ScoringApp(title=f"Reward {name}", version=scorer.version, description=thread.info.meaning, lifespan=lifespan)
    app.state.failure = lambda: thread.failure

    def not_ready() -> str | None:
        return thread.not_ready or (handover.not_ready if handover else None)

    async def answer(request: Request) -> Response:
        check_token(request, token)
        if (reason := not_ready()) is not None:
            raise EnvelopeError(503, "Not ready", f"reward {name}: {reason}", headers={"Retry-After": "1"})
        parsed = await parse_score_request(request, bounds)
        for index, asked in enumerate(parsed.rewards):
            for reward in asked:
                if reward != name:
                    raise unknown_reward(index, reward, [name])
        outcomes = await unless_hung_up(request, _score_items(thread, parsed))
        for outcome in outcomes:
            metrics.items.labels(name, "ok" if isinstance(outcome, Score) else outcome.code).inc()
        return score_response([{name: outcome} for outcome in outcomes], request.headers.get("accept", ""))

    @app.post("/v1/score", summary="Score images against their prompts", openapi_extra=SCORE_OPENAPI)
    async def score(request: Request) -> Response:
        try:
            response = await answer(request)
        except EnvelopeError as error:
            metrics.requests.labels(name, str(error.problem.status)).inc()
            raise
        metrics.requests.labels(name, str(response.status_code)).inc()
        return response

    @app.get("/v1/info", summary="What this reward is", responses=problems(401))
    async def info(request: Request) -> Response:
        check_token(request, token)
        return Response(msgspec.json.encode(thread.info), media_type="application/json")

    @app.get("/livez", summary="Whether the process runs", response_class=PlainTextResponse)
    async def livez() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", summary="Whether the scorer is warm", response_class=PlainTextResponse, responses=problems(503))
    async def readyz() -> Response:
        if (reason := not_ready()) is not None:
            return problem(503, "Not ready", f"reward {name}: {reason}", headers={"Retry-After": "1"})
        return Response("ready\n", media_type="text/plain")

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    install_middleware(app, score)
    return app


async def _score_items(thread: ScorerThread, parsed: ParsedRequest) -> list[Outcome]:
    """Score the sound items; broken ones never reach the scorer. Cancelling gives up the places in the queue."""
    allowed = LONGEST_WAIT_S if parsed.deadline is None else min(parsed.deadline, LONGEST_WAIT_S)
    sound = {index: item for index, item in enumerate(parsed.items) if isinstance(item, Item)}
    try:
        submitted = thread.submit(list(sound.values()), deterministic=parsed.deterministic, deadline_s=allowed)
    except QueueFull as error:
        headers = {"Retry-After": str(error.retry_after_s)}
        raise EnvelopeError(429, "Too many requests", str(error), headers=headers) from None
    try:
        await _all_done(submitted, max(0.0, allowed))
        late = ItemError(ErrorCode.DEADLINE, f"no score within the {allowed:.3f} s left to the request")
        scored = {
            index: future.result() if future.done() else late for index, future in zip(sound, submitted, strict=True)
        }
    finally:
        for future in submitted:
            future.cancel()
    return [scored[index] if isinstance(item, Item) else item for index, item in enumerate(parsed.items)]


async def _all_done(futures: Sequence[Future[Outcome]], timeout_s: float) -> None:
    """Returns when all are done or the time is up. The event loop is woken once, not for each of them."""
    loop, ended, pending = asyncio.get_running_loop(), asyncio.Event(), set(futures)

    def done(future: Future[Outcome]) -> None:  # in the scorer's thread
        pending.discard(future)
        if not pending and not loop.is_closed():
            loop.call_soon_threadsafe(ended.set)

    for future in futures:
        future.add_done_callback(done)
    if futures:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await ended.wait()
