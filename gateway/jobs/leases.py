"""Who works on which chunk, and until when nobody else does. The caller passes the time, in Unix seconds.

A chunk that is due is given a token and sent; only the message with the token of the row can claim it, and each claim
prolongs its lease. So a message that is delivered twice, or long after it was given up, does nothing; and one that is
lost, on whatever broker, costs a lease and no result.
"""

import json
from collections.abc import Mapping
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Engine, exists, func, select, update

from gateway.jobs.config import JobsConfig
from gateway.jobs.job import LIVE, Claim, JobState, Message, Task, write_details
from gateway.jobs.tables import chunks, entries, failed, insert_new, items, jobs, scores
from reward_api import ItemError, Outcome, Score

Place = tuple[int, str]  # (item number, reward)
_OPEN = entries.c.version.is_(None) & entries.c.error_code.is_(None)


class Leases:
    """What the sweeper and the workers do to the table."""

    def __init__(self, reading: Engine, writing: Engine, config: JobsConfig) -> None:
        self._reading = reading
        self._writing = writing
        self._config = config

    def due(self, now: float) -> list[Message]:
        """The chunks to send now, each with a lease; at most `queued_chunks` are with broker and workers at once."""
        live = chunks.c.done_at.is_(None) & _in_live_job()
        with self._reading.begin() as connection:
            if not connection.scalar(select(exists().where(live, chunks.c.lease_until <= now))):
                return []  # the usual case takes no lock
        with self._writing.begin() as connection:
            sent = select(func.count()).where(live, chunks.c.token.is_not(None), chunks.c.lease_until > now)
            room = self._config.queued_chunks - (connection.scalar(sent) or 0)
            waiting = (
                select(chunks.c.id, chunks.c.token)
                .where(live, chunks.c.lease_until <= now)
                .order_by(chunks.c.turn, chunks.c.id)
                .limit(max(room, 0))
                .with_for_update(skip_locked=True)
            )
            found = [
                Message(row.id, uuid4().hex, again=row.token is not None) for row in connection.execute(waiting).all()
            ]
            for message in found:
                lease = {"token": message.token, "lease_until": now + self._config.lease_s}
                connection.execute(update(chunks).where(chunks.c.id == message.chunk_id).values(lease))
        return found

    def unsent(self, message: Message, now: float) -> None:
        """The broker did not take the message: its chunk is due again."""
        with self._writing.begin() as connection:
            connection.execute(update(chunks).where(_held(message)).values(token=None, lease_until=now))

    def claim(self, chunk_id: str, token: str, now: float) -> Claim | None:
        """The chunk, to be scored within its lease; None if another message stands for it by now, or nobody wants it.

        The same message may claim twice: it was delivered again because whoever had it is gone.
        """
        message = Message(chunk_id, token)
        lease = {"lease_until": now + self._config.lease_s, "claims": chunks.c.claims + 1}
        wanted = update(chunks).where(_held(message), chunks.c.done_at.is_(None), _in_live_job()).values(lease)
        with self._writing.begin() as connection:
            if connection.execute(wanted).rowcount == 0:
                return None
            chunk = connection.execute(
                select(chunks, jobs.c.deterministic).join(jobs, jobs.c.id == chunks.c.job_id).where(_held(message))
            ).one()
            started = update(jobs).where(jobs.c.id == chunk.job_id, jobs.c.state == JobState.QUEUED)
            connection.execute(started.values(state=JobState.RUNNING, started_at=now))
            tasks = _tasks(connection, chunk_id)
        return Claim(chunk_id, token, chunk.job_id, chunk.deterministic, chunk.claims, chunk.troubles, tasks)

    def known(self, claim: Claim, versions: Mapping[str, str]) -> dict[Place, Outcome]:
        """The claim's places whose score (content, reward, version) is in the table already, for any job."""
        wanted = {task.key for task in claim.tasks}
        rows = select(scores).where(scores.c.content_key.in_(wanted))
        with self._reading.begin() as connection:
            found = {
                (row.content_key, row.reward): Score(row.score, json.loads(row.details))
                for row in connection.execute(rows)
                if versions.get(row.reward) == row.version
            }
        return {
            (task.number, reward): found[task.key, reward]
            for task in claim.tasks
            for reward in task.rewards
            if (task.key, reward) in found
        }

    def record(
        self,
        claim: Claim,
        outcomes: Mapping[Place, Outcome],
        versions: Mapping[str, str],
        now: float,
        *,
        again_in_s: float = 0.0,
    ) -> bool:
        """Writes what is known of a claimed chunk in one commit. Returns whether that ended the job.

        Each place keeps the first end it is given, so a worker whose lease has passed does no harm. A chunk with
        open places is due again in `again_in_s`.
        """
        keys = {task.number: task.key for task in claim.tasks}
        with self._writing.begin() as connection:
            scored = 0
            for (number, reward), outcome in outcomes.items():
                place = (entries.c.job_id == claim.job_id) & (entries.c.number == number) & (entries.c.reward == reward)
                end: dict[str, str]
                if isinstance(outcome, ItemError):
                    end = failed(outcome)
                else:
                    row = {"content_key": keys[number], "reward": reward, "version": versions[reward]}
                    new = row | {"score": outcome.score, "details": write_details(outcome), "scored_at": now}
                    connection.execute(insert_new(connection, scores).values(new))
                    end = {"version": versions[reward]}
                    scored += 1
                connection.execute(update(entries).where(place, _OPEN).values(end))
            self._let_go(connection, claim, now, progressed=scored > 0, again_in_s=again_in_s)
            unfinished = exists().where(chunks.c.job_id == claim.job_id, chunks.c.done_at.is_(None))
            ended = update(jobs).where(jobs.c.id == claim.job_id, jobs.c.state == JobState.RUNNING, ~unfinished)
            return connection.execute(ended.values(state=JobState.DONE, finished_at=now)).rowcount > 0

    def _let_go(self, connection: Connection, claim: Claim, now: float, *, progressed: bool, again_in_s: float) -> None:
        """The chunk is done, or waits to be sent again; a worker that no longer holds it can only call it done."""
        lacking = exists().where(
            items.c.chunk_id == claim.chunk_id,
            entries.c.job_id == items.c.job_id,
            entries.c.number == items.c.number,
            _OPEN,
        )
        chunk = chunks.c.id == claim.chunk_id
        done = update(chunks).where(chunk, chunks.c.done_at.is_(None), ~lacking).values(done_at=now)
        if connection.execute(done).rowcount > 0:
            return
        later = {
            "token": None,
            "lease_until": now + again_in_s,
            "claims": 0,
            "troubles": 0 if progressed else chunks.c.troubles + 1,
        }
        connection.execute(update(chunks).where(_held(Message(claim.chunk_id, claim.token))).values(later))


def _held(message: Message) -> ColumnElement[bool]:
    return (chunks.c.id == message.chunk_id) & (chunks.c.token == message.token)


def _in_live_job() -> ColumnElement[bool]:
    return chunks.c.job_id.in_(select(jobs.c.id).where(jobs.c.state.in_(LIVE)))


def _tasks(connection: Connection, chunk_id: str) -> list[Task]:
    rows = connection.execute(
        select(items.c.number, items.c.image, items.c.content, entries.c.content_key, entries.c.reward)
        .join(entries, (entries.c.job_id == items.c.job_id) & (entries.c.number == items.c.number))
        .where(items.c.chunk_id == chunk_id, _OPEN)
        .order_by(items.c.number, entries.c.reward)
    ).all()
    rewards: dict[int, list[str]] = {}
    for row in rows:
        rewards.setdefault(row.number, []).append(row.reward)
    first = {row.number: row for row in reversed(rows)}
    return [
        Task(number, first[number].image, first[number].content, first[number].content_key, tuple(names))
        for number, names in rewards.items()
    ]
