"""The jobs of one gateway: table, store, sweeper and courier, put together."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from gateway.jobs.config import JobsConfig
from gateway.jobs.courier import Courier, forgetful_settings
from gateway.jobs.job import LIVE, Progress
from gateway.jobs.leases import Leases
from gateway.jobs.ledger import Ledger
from gateway.jobs.metrics import JobMetrics
from gateway.jobs.retention import Retention
from gateway.jobs.store import ImageStore
from gateway.jobs.sweeper import Sweeper
from gateway.jobs.tables import open_database
from reward_api import EnvelopeError
from reward_api.wire import encode_line

logger = logging.getLogger(__name__)

_LOOK_S, _LOOK_CAP_S = 0.1, 1.0
_ID = re.compile("[0-9a-f]{32}")


class Jobs:
    """The table, the store and the sweeper of one gateway. `running` must be entered."""

    def __init__(self, config: JobsConfig, registry: CollectorRegistry) -> None:
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
            self._courier,
            JobMetrics(registry),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Jobs make progress inside this context."""
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
        known = _ID.fullmatch(job_id) is not None
        found = await asyncio.to_thread(self.ledger.progress, job_id) if known else None
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
