"""What is kept no longer: jobs some time after their end, and with them scores and images that no job needs."""

import logging

from sqlalchemy import Engine, delete, exists, select

from gateway.jobs.config import JobsConfig
from gateway.jobs.store import ImageStore
from gateway.jobs.tables import entries, images, items, jobs, scores

logger = logging.getLogger(__name__)

AT_ONCE = 256  # rows in one transaction: other writers wait meanwhile
JOBS_AT_ONCE = 4  # with all that belongs to them
UPLOAD_S = 3600.0  # an image without a job may belong to a request that is still being read


class Retention:
    """Removes what has expired. A live job never expires; cancel it."""

    def __init__(self, writing: Engine, store: ImageStore, config: JobsConfig) -> None:
        self._writing = writing
        self._store = store
        self._config = config

    def sweep(self, now: float) -> int:
        """Removes some of what has expired. Returns how much; 0 says that nothing is left to remove."""
        with self._writing.begin() as connection:
            old_jobs = select(jobs.c.id).where(jobs.c.finished_at <= now - self._config.keep_s).limit(JOBS_AT_ONCE)
            expired = list(connection.scalars(old_jobs))
            connection.execute(delete(jobs).where(jobs.c.id.in_(expired)))
        for job_id in expired:
            logger.info("job %s removed, its end is %g s ago", job_id, self._config.keep_s, extra={"job": job_id})
        self._store.clean(UPLOAD_S)
        return len(expired) + self._sweep_scores(now) + self._sweep_images(now)

    def _sweep_scores(self, now: float) -> int:
        used = exists().where(
            entries.c.content_key == scores.c.content_key,
            entries.c.reward == scores.c.reward,
            entries.c.version == scores.c.version,
        )
        key = (scores.c.content_key, scores.c.reward, scores.c.version)
        unused = select(*key).where(scores.c.scored_at <= now - self._config.keep_s, ~used).limit(AT_ONCE)
        with self._writing.begin() as connection:
            found = connection.execute(unused).all()
            for row in found:
                match = [column == value for column, value in zip(key, row, strict=True)]
                connection.execute(delete(scores).where(*match))
        return len(found)

    def _sweep_images(self, now: float) -> int:
        used = exists().where(items.c.image == images.c.digest)
        unused = select(images.c.digest).where(images.c.used_at <= now - UPLOAD_S, ~used).limit(AT_ONCE)
        with self._writing.begin() as connection:
            found = list(connection.scalars(unused.with_for_update(skip_locked=True)))
            connection.execute(delete(images).where(images.c.digest.in_(found)))
            # Before the commit: a request with the same image waits for the row, then writes the file anew.
            for digest in found:
                self._store.remove(digest)
        return len(found)
