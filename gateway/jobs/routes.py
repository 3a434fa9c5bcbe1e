"""Jobs over HTTP: /v1/jobs."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from gateway.jobs.config import JobsConfig
from gateway.jobs.intake import read_job
from gateway.jobs.job import Progress
from gateway.jobs.jobs import Jobs
from gateway.jobs.ledger import KeyReused
from gateway.jobs.openapi import ADD, LIMIT, WAIT, described
from reward_api import EnvelopeError, Limits
from reward_api.http import unless_hung_up
from reward_api.wire import JSON

logger = logging.getLogger(__name__)

_OFF = "this gateway keeps no jobs; its configuration needs a section `jobs`"


def jobs_router(
    jobs: Jobs | None, served: Collection[str], admit: Callable[[Request], object], limits: Limits
) -> APIRouter:
    """The routes; without `jobs`, all of them answer 404 and say why.

    `served` are the names of the rewards there are; `admit` raises EnvelopeError 401 for callers it does not know.
    """
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    def opened(request: Request) -> Jobs:
        admit(request)
        if jobs is None:
            raise EnvelopeError(404, "No jobs here", _OFF)
        return jobs

    @router.post("", status_code=202, summary="Score many items durably", openapi_extra=ADD)
    async def add(request: Request) -> Response:
        here = opened(request)
        asked = await read_job(request, served, here.ledger, here.store, here.config, limits)
        try:
            job_id = await asyncio.to_thread(here.ledger.add, asked, time.time())
        except KeyReused as error:
            raise EnvelopeError(422, "Idempotency-Key in use", str(error)) from None
        logger.info("job %s has %d items", job_id, len(asked.items), extra={"job": job_id, "items": len(asked.items)})
        return _answer(await here.find(job_id), here.config, 202, Location=f"/v1/jobs/{job_id}")

    @router.get("", summary="The last jobs, newest first", openapi_extra=described("200", "422", parameter=LIMIT))
    async def latest(request: Request) -> Response:
        here = opened(request)
        found = await asyncio.to_thread(here.ledger.latest, int(_query(request, LIMIT)))
        return _json({"jobs": [_document(job, here.config) for job in found]})

    @router.get(
        "/{job_id}",
        summary="How far a job is; with wait, not before its end or that many seconds",
        openapi_extra=described("200", "422", parameter=WAIT),
    )
    async def look(request: Request, job_id: str) -> Response:
        here = opened(request)
        seconds = _query(request, WAIT)
        return _answer(await unless_hung_up(request, here.wait(job_id, seconds)), here.config)

    @router.get(
        "/{job_id}/results",
        summary="One line of JSON for each item with results, in order",
        openapi_extra=described("200"),
    )
    async def results(request: Request, job_id: str) -> Response:
        here = opened(request)
        found = await here.find(job_id)
        headers = {"X-Job-State": found.state, "Content-Disposition": f'attachment; filename="{found.id}.jsonl"'}
        return StreamingResponse(here.lines(job_id), headers=headers, media_type="application/jsonl")

    @router.delete(
        "/{job_id}",
        summary="Start nothing more of a job; what is scored stays readable",
        openapi_extra=described("200"),
    )
    async def cancel(request: Request, job_id: str) -> Response:
        here = opened(request)
        await here.find(job_id)
        if await asyncio.to_thread(here.ledger.cancel, job_id, time.time()):
            logger.info("job %s cancelled", job_id, extra={"job": job_id})
        return _answer(await here.find(job_id), here.config)

    return router


def _query(request: Request, parameter: dict[str, Any]) -> float:
    """A number of the query. Raises EnvelopeError 422."""
    name, schema = parameter["name"], parameter["schema"]
    text = request.query_params.get(name, str(schema["default"]))
    with contextlib.suppress(ValueError):
        value = float(text)
        if schema["minimum"] <= value <= schema["maximum"] and (schema["type"] == "number" or value.is_integer()):
            return value
    detail = f"{name} must be a {schema['type']} from {schema['minimum']} to {schema['maximum']}, got {text[:40]!r}"
    raise EnvelopeError(422, "Invalid query", detail)


def _document(job: Progress, config: JobsConfig) -> dict[str, object]:
    times = {
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "expires_at": None if job.finished_at is None else job.finished_at + config.keep_s,
    }
    counts = {"scored": job.scored, "failed": job.failed, "pending": job.pending}
    return {
        "id": job.id,
        "state": job.state,
        "items": job.items,
        "results": counts,
        **{name: None if at is None else datetime.fromtimestamp(at, UTC) for name, at in times.items()},
    }


def _answer(job: Progress, config: JobsConfig, status: int = 200, **headers: str) -> Response:
    return _json(_document(job, config), status, **headers)


def _json(document: dict[str, object], status: int = 200, **headers: str) -> Response:
    return Response(msgspec.json.encode(document), status, headers=headers, media_type=JSON)
