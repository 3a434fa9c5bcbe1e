"""The jobs of the table: added, looked at, read out, cancelled. The caller passes the time, in Unix seconds."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from uuid import uuid4

from sqlalchemy import Connection, Engine, Select, case, exists, func, select, update
from sqlalchemy.exc import IntegrityError

from gateway.jobs.config import JobsConfig
from gateway.jobs.job import LIVE, JobRequest, JobState, Progress, StoredItem
from gateway.jobs.tables import chunks, entries, failed, images, insert_new, items, jobs, scores
from reward_api import ItemError, Outcome, Score

PAGE_ITEMS = 256
GIVEN_UP = -1.0  # an image's time of use that lets the next sweep have it, unless a job needs it
TURN_S = 1.0  # a chunk's place in line: that of a job which came this much later for each chunk before it


class KeyReused(Exception):
    """The Idempotency-Key belongs to a job of other content."""


class Ledger:
    """What callers of the API see of the table."""

    def __init__(self, reading: Engine, writing: Engine, config: JobsConfig) -> None:
        self._reading = reading
        self._writing = writing
        self._hasty = writing.execution_options(hasty=True)  # on disk with the next commit that is not
        self._config = config

    def add(self, request: JobRequest, now: float) -> str:
        """Adds a job and returns its id; for an Idempotency-Key seen before, the id of the job that has it.

        Its images must have been expected. Raises KeyReused.
        """
        digest = request.digest()
        try:
            with self._writing.begin() as connection:
                known = _by_key(connection, request.idempotency_key, digest)
                return known or self._insert(connection, request, digest, now)
        except IntegrityError:  # another process added the same key meanwhile; cannot happen on SQLite
            with self._reading.begin() as connection:
                known = _by_key(connection, request.idempotency_key, digest)
            if known is None:
                raise
            return known

    def expect(self, image: str, size_bytes: int, now: float) -> bool:
        """Keeps the sweep from an image which a job to come will need; call it before the file is written.

        Returns whether the image takes room that it did not take before.
        """
        with self._hasty.begin() as connection:
            row = insert_new(connection, images).values(digest=image, size_bytes=size_bytes, used_at=now)
            known = update(images).where(images.c.digest == image).values(used_at=now)
            new = (
                connection.execute(row).rowcount
                + connection.execute(known.where(images.c.used_at == GIVEN_UP)).rowcount
            )
            connection.execute(known)
            return new > 0

    def unexpect(self, expected: Collection[str], at: float) -> None:
        """The job to come, which expected these images at that time, does not come; nobody else's do they stay."""
        alone = images.c.digest.in_(expected) & (images.c.used_at == at)
        with self._hasty.begin() as connection:
            connection.execute(update(images).where(alone).values(used_at=GIVEN_UP))

    def stored_bytes(self) -> int:
        """Pixels of all images that are stored, or about to be."""
        held = select(func.coalesce(func.sum(images.c.size_bytes), 0)).where(images.c.used_at != GIVEN_UP)
        with self._reading.begin() as connection:
            return connection.scalar(held) or 0

    def progress(self, job_id: str) -> Progress | None:
        """How far a job is, or None where there is no such job (any more)."""
        with self._reading.begin() as connection:
            return next(_progress(connection, select(jobs).where(jobs.c.id == job_id)), None)

    def latest(self, limit: int) -> list[Progress]:
        """The last jobs added, newest first."""
        with self._reading.begin() as connection:
            return list(_progress(connection, select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)))

    def cancel(self, job_id: str, now: float) -> bool:
        """Nothing more of the job is started; what is at a worker still arrives. Returns whether it was live."""
        live = update(jobs).where(jobs.c.id == job_id, jobs.c.state.in_(LIVE))
        with self._writing.begin() as connection:
            return connection.execute(live.values(state=JobState.CANCELLED, finished_at=now)).rowcount > 0

    def results(self, job_id: str, start: int) -> tuple[list[tuple[int, dict[str, Outcome]]], int | None]:
        """The ends of up to PAGE_ITEMS items from number `start` on, in order, and where the next page starts.

        An item of which nothing is known yet is left out.
        """
        found = (
            select(entries, scores.c.score, scores.c.details)
            .outerjoin(
                scores,
                (scores.c.content_key == entries.c.content_key)
                & (scores.c.reward == entries.c.reward)
                & (scores.c.version == entries.c.version),
            )
            .where(entries.c.job_id == job_id, entries.c.number >= start, entries.c.number < start + PAGE_ITEMS)
            .where(entries.c.version.is_not(None) | entries.c.error_code.is_not(None))
            .order_by(entries.c.number, entries.c.reward)
        )
        page: dict[int, dict[str, Outcome]] = defaultdict(dict)
        with self._reading.begin() as connection:
            for row in connection.execute(found):
                failed = row.error_code is not None
                page[row.number][row.reward] = (
                    ItemError(row.error_code, row.error_message)
                    if failed
                    else Score(row.score, json.loads(row.details))
                )
            more = connection.scalar(
                select(exists().where(items.c.job_id == job_id, items.c.number >= start + PAGE_ITEMS))
            )
        return list(page.items()), start + PAGE_ITEMS if more else None

    def counts(self) -> tuple[dict[str, int], int]:
        """(jobs by state, results that live jobs wait for)."""
        waiting = (
            select(func.count())
            .select_from(entries.join(jobs, jobs.c.id == entries.c.job_id))
            .where(jobs.c.state.in_(LIVE), entries.c.version.is_(None), entries.c.error_code.is_(None))
        )
        by_state = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        with self._reading.begin() as connection:
            found = {row[0]: row[1] for row in connection.execute(by_state)}
            return {str(state): found.get(state, 0) for state in JobState}, connection.scalar(waiting) or 0

    def _insert(self, connection: Connection, request: JobRequest, digest: str, now: float) -> str:
        job_id = uuid4().hex
        live = any(item.error is None for item in request.items)
        connection.execute(
            jobs.insert().values(
                id=job_id,
                idempotency_key=request.idempotency_key,
                digest=digest,
                state=JobState.QUEUED if live else JobState.DONE,
                item_count=len(request.items),
                deterministic=request.deterministic,
                created_at=now,
                finished_at=None if live else now,
            )
        )
        keys = [item.key(deterministic=request.deterministic) for item in request.items]
        chunk_of = self._cut(request.items, keys)
        new_chunks = [
            {"id": f"{job_id}-{n}", "job_id": job_id, "turn": now + n * TURN_S, "lease_until": now}
            for n in sorted(set(chunk_of.values()))
        ]
        new_items, new_entries = [], []
        for number, (item, key) in enumerate(zip(request.items, keys, strict=True)):
            place = {"job_id": job_id, "number": number}
            chunk_id = None if item.error else f"{job_id}-{chunk_of[key]}"
            new_items.append(
                place | {"chunk_id": chunk_id, "image": item.image or None, "content": item.content or None}
            )
            new_entries += [
                place
                | {
                    "reward": reward,
                    "content_key": None if item.error else key,
                }
                | (failed(item.error) if item.error else {"error_code": None, "error_message": None})
                for reward in item.rewards
            ]
        if new_chunks:
            connection.execute(chunks.insert(), new_chunks)
        connection.execute(items.insert(), new_items)
        connection.execute(entries.insert(), new_entries)
        return job_id

    def _cut(self, asked: Sequence[StoredItem], keys: Sequence[str]) -> dict[str, int]:
        """Content key -> number of its chunk. The same content is in one chunk however often it is asked for."""
        chunk_of: dict[str, int] = {}
        chunk, count, size = 0, 0, 0
        for item, key in zip(asked, keys, strict=True):
            if item.error or key in chunk_of:
                continue
            if count and (count == self._config.chunk_items or size + item.size_bytes > self._config.chunk_bytes):
                chunk, count, size = chunk + 1, 0, 0
            chunk_of[key] = chunk
            count, size = count + 1, size + item.size_bytes
        return chunk_of


def _by_key(connection: Connection, key: str | None, digest: str) -> str | None:
    if key is None:
        return None
    row = connection.execute(select(jobs.c.id, jobs.c.digest).where(jobs.c.idempotency_key == key)).first()
    if row is None:
        return None
    if row.digest != digest:
        raise KeyReused(f"Idempotency-Key {key!r} belongs to job {row.id}, which has other content")
    return str(row.id)


def _progress(connection: Connection, chosen: Select[tuple[object, ...]]) -> Iterator[Progress]:
    for job in connection.execute(chosen).all():
        total, scored, failed = connection.execute(
            select(
                func.count(),
                func.coalesce(func.sum(case((entries.c.version.is_not(None), 1), else_=0)), 0),
                func.coalesce(func.sum(case((entries.c.error_code.is_not(None), 1), else_=0)), 0),
            ).where(entries.c.job_id == job.id)
        ).one()
        yield Progress(
            job.id,
            JobState(job.state),
            job.item_count,
            job.created_at,
            job.started_at,
            job.finished_at,
            scored,
            failed,
            total - scored - failed,
        )
