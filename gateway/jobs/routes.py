"""Jobs over HTTP: /v1/jobs."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry

from gateway.jobs.config import JobsConfig
from gateway.jobs.courier import Courier, forgetful_settings
from gateway.jobs.intake import read_job
from gateway.jobs.job import LIVE, Progress
from gateway.jobs.leases import Leases
from gateway.jobs.ledger import KeyReused, Ledger
from gateway.jobs.metrics import JobMetrics
from gateway.jobs.retention import Retention
from gateway.jobs.store import ImageStore
from gateway.jobs.sweeper import Sender, Sweeper
from gateway.jobs.tables import open_database
from reward_api import EnvelopeError, Limits
from reward_api.http import SCORE_OPENAPI, unless_hung_up
from reward_api.wire import JSON, encode_line

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
_LOOK_S, _LOOK_CAP_S = 0.1, 1.0
_OFF = "this gateway keeps no jobs; its configuration needs a section `jobs`"
_JOB = {"description": "the job: id, state, counts"}
_JOBS_OPENAPI: dict[str, Any] = {
    "requestBody": SCORE_OPENAPI["requestBody"],
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "maxLength": 255},
            "description": "a request sent again under the same key is the same job",
        }
    ],
    "responses": {
        "202": {**_JOB, "headers": {"Location": {"schema": {"type": "string"}}}},
        "413": {"description": "more items or bytes than a job may have"},
        "422": {"description": "the request as a whole is wrong, or the key belongs to a job of other content"},
        "507": {"description": "the store of images is full"},
    },
}


class Jobs:
    """The table, the store and the sweeper of one gateway. Use inside `async with`."""

    def __init__(self, config: JobsConfig, registry: CollectorRegistry, *, sender: Sender | None = None) -> None:
        config.folder.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.store = ImageStore(config.folder / "images")
        self._engines = open_database(config.database_url)
        self.ledger = Ledger(*self._engines, config)
        self._courier = Courier(config)
        self.sweeper = Sweeper(
            Leases(*self._engines, config),
            self.ledger,
            Retention(self._engines[1], self.store, config),
            sender or self._courier,
            JobMetrics(registry),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        for sentence in await asyncio.to_thread(forgetful_settings, self.config):
            logger.warning("%s", sentence)
        sweeping = asyncio.create_task(self.sweeper.run(self.config.sweep_s))
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.wait({sweeping})
            self._courier.close()
            self._engines[0].dispose()

    async def find(self, job_id: str) -> Progress:
        """Raises EnvelopeError 404."""
        found = await asyncio.to_thread(self.ledger.progress, job_id)
        if found is None:
            detail = f"no job {job_id[:64]!r}; a job is removed {self.config.keep_s:g} s after its end"
            raise EnvelopeError(404, "No such job", detail)
        return found

    async def wait(self, job_id: str, seconds: float) -> Progress:
        """The job at its end, or after `seconds`."""
        clock = asyncio.get_running_loop().time
        until, pause = clock() + seconds, _LOOK_S
        while (found := await self.find(job_id)).state in LIVE and (left := until - clock()) > 0:
            # Workers are other processes: the table is all that they share with this one.
            await asyncio.sleep(min(pause, left))
            pause = min(1.5 * pause, _LOOK_CAP_S)
        return found

    async def lines(self, job_id: str) -> AsyncGenerator[bytes, None]:
        """The results in order, page by page."""
        start: int | None = 0
        while start is not None:
            page, start = await asyncio.to_thread(self.ledger.results, job_id, start)
            yield b"".join(encode_line(number, results) for number, results in page)


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

    @router.post("", status_code=202, summary="Score many items durably", openapi_extra=_JOBS_OPENAPI)
    async def add(request: Request) -> Response:
        here = opened(request)
        asked = await read_job(request, served, here.ledger, here.store, here.config, limits)
        try:
            job_id = await asyncio.to_thread(here.ledger.add, asked, time.time())
        except KeyReused as error:
            raise EnvelopeError(422, "Idempotency-Key in use", str(error)) from None
        logger.info("job %s has %d items", job_id, len(asked.items), extra={"job": job_id, "items": len(asked.items)})
        return _answer(await here.find(job_id), here.config, 202, Location=f"/v1/jobs/{job_id}")

    @router.get("", summary="The last jobs, newest first")
    async def latest(request: Request, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> Response:
        here = opened(request)
        found = await asyncio.to_thread(here.ledger.latest, limit)
        return _json({"jobs": [_document(job, here.config) for job in found]})

    @router.get("/{job_id}", summary="How far a job is; with wait, not before its end or that many seconds")
    async def look(
        request: Request, job_id: str, wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0.0
    ) -> Response:
        here = opened(request)
        return _answer(await unless_hung_up(request, here.wait(job_id, wait)), here.config)

    @router.get("/{job_id}/results", summary="One line of JSON for each item with results, in order")
    async def results(request: Request, job_id: str) -> Response:
        here = opened(request)
        found = await here.find(job_id)
        headers = {"X-Job-State": found.state, "Content-Disposition": f'attachment; filename="{found.id}.jsonl"'}
        return StreamingResponse(here.lines(job_id), headers=headers, media_type="application/jsonl")

    @router.delete("/{job_id}", summary="Start nothing more of a job; what is scored stays readable")
    async def cancel(request: Request, job_id: str) -> Response:
        here = opened(request)
        if await asyncio.to_thread(here.ledger.cancel, job_id, time.time()):
            logger.info("job %s cancelled", job_id, extra={"job": job_id})
        return _answer(await here.find(job_id), here.config)

    return router


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
