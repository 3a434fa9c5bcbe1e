"""Jobs and leases in the table, with the time passed in."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_tables import VERSIONS, Tables, broken, right_outcomes, right_score, stored
from sqlalchemy import func, select, update

from gateway.jobs.job import JobState
from gateway.jobs.ledger import PAGE_ITEMS, KeyReused
from gateway.jobs.tables import jobs, open_database, scores
from reward_api import ItemError, Score

pytestmark = pytest.mark.unit

Make = Callable[..., Tables]


@pytest.fixture(params=["sqlite", "postgresql"] if os.environ.get("TEST_POSTGRESQL") else ["sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    url: str = request.getfixturevalue("postgresql_schema")
    return url


@pytest.fixture
def make(database: str) -> Iterator[Make]:
    made: list[Tables] = []

    def tables(**settings: Any) -> Tables:
        made.append(Tables(database, **settings))
        return made[-1]

    yield tables
    for one in made:
        one.close()


def states(tables: Tables, job: str) -> tuple[str, int, int, int]:
    found = tables.ledger.progress(job)
    assert found is not None
    return found.state, found.scored, found.failed, found.pending


def test_a_job_goes_from_queued_over_running_to_done(make: Make):
    tables = make()
    job = tables.add([stored(0), stored(1, "count", "style"), stored(2)], now=10)
    assert states(tables, job) == (JobState.QUEUED, 0, 0, 4)
    first, second = tables.claim_all(20)
    assert states(tables, job) == (JobState.RUNNING, 0, 0, 4)
    assert not tables.score(second, 30)
    assert states(tables, job) == (JobState.RUNNING, 1, 0, 3)
    assert tables.ledger.results(job, 0) == ([(2, {"count": Score(2.0, {"by": "count"})})], None)
    assert tables.score(first, 40)
    found = tables.ledger.progress(job)
    assert found is not None
    assert (found.state, found.created_at, found.started_at, found.finished_at) == (JobState.DONE, 10, 20, 40)
    assert tables.ledger.results(job, 0)[0] == [
        (0, {"count": Score(0.0, {"by": "count"})}),
        (1, {"count": Score(1.0, {"by": "count"}), "style": Score(1.5, {"by": "style"})}),
        (2, {"count": Score(2.0, {"by": "count"})}),
    ]
    assert tables.leases.due(1000) == []


def test_items_that_cannot_be_read_are_ends_and_no_work(make: Make):
    tables = make()
    mixed = tables.add([broken(), stored(1)])
    assert states(tables, mixed) == (JobState.QUEUED, 0, 1, 1)
    hopeless = tables.add([broken("count", "style")], now=5)
    assert states(tables, hopeless) == (JobState.DONE, 0, 2, 0)
    error = ItemError("bad_image", "not an image")
    assert tables.ledger.results(hopeless, 0) == ([(0, {"count": error, "style": error})], None)
    assert [claim.job_id for claim in tables.claim_all(5)] == [mixed]


def test_only_the_newest_message_claims_a_chunk(make: Make):
    tables = make()
    job = tables.add([stored(0)])
    (lost,) = tables.leases.due(0)
    assert tables.leases.due(99) == []
    (again,) = tables.leases.due(100)
    assert (lost.again, again.again, again.chunk_id) == (False, True, lost.chunk_id)
    assert tables.leases.claim(lost.chunk_id, lost.token, 101) is None
    claim = tables.leases.claim(again.chunk_id, again.token, 150)
    assert claim is not None
    assert tables.leases.due(249) == []  # the claim prolonged the lease
    tables.score(claim, 200)
    assert states(tables, job)[0] == JobState.DONE
    assert tables.leases.claim(again.chunk_id, again.token, 201) is None


def test_a_message_delivered_again_claims_again_and_is_counted(make: Make):
    tables = make()
    tables.add([stored(0)])
    (message,) = tables.leases.due(0)
    counts = []
    for now in (1, 2, 3):
        claim = tables.leases.claim(message.chunk_id, message.token, now)
        assert claim is not None
        counts.append(claim.claims)
    assert counts == [1, 2, 3]
    tables.leases.record(claim, {}, {}, 4, again_in_s=10)
    assert tables.leases.due(13) == []
    (later,) = tables.claim_all(14)
    assert (later.claims, later.troubles) == (1, 1)


def test_a_worker_whose_lease_has_passed_does_no_harm(make: Make):
    tables = make()
    job = tables.add([stored(0), stored(1)])
    (slow,) = tables.claim_all(0)
    (quick,) = tables.claim_all(100)
    first = slow.tasks[0].number, "count"
    tables.leases.record(slow, {first: Score(0.0, {"by": "count"})}, VERSIONS, 110)
    assert states(tables, job) == (JobState.RUNNING, 1, 0, 1)
    assert tables.leases.due(120) == []  # it did not take the chunk from its new holder
    assert tables.score(quick, 130)
    wrong = {(task.number, "count"): ItemError("scorer_failed", "late") for task in slow.tasks}
    assert not tables.leases.record(slow, wrong, VERSIONS, 140)
    assert states(tables, job) == (JobState.DONE, 2, 0, 0)


def test_what_is_left_open_is_due_again_later_and_progress_clears_troubles(make: Make):
    tables = make()
    tables.add([stored(0), stored(1)])
    (claim,) = tables.claim_all(0)
    tables.leases.record(claim, {}, {}, 10, again_in_s=5)
    assert tables.leases.due(14) == []
    (claim,) = tables.claim_all(15)
    assert (claim.troubles, len(claim.tasks)) == (1, 2)
    tables.leases.record(claim, {(0, "count"): right_score(claim.tasks[0].content, "count")}, VERSIONS, 16)
    (claim,) = tables.claim_all(16)
    assert (claim.troubles, [task.number for task in claim.tasks]) == (0, [1])


def test_a_score_is_known_by_content_reward_and_version(make: Make):
    tables = make()
    tables.add([stored(0, "count", "style")])
    (claim,) = tables.claim_all(0)
    tables.score(claim, 1)

    tables.add([stored(5), stored(0, "count", "style")])
    (claim,) = tables.claim_all(2)
    assert tables.leases.known(claim, VERSIONS) == {
        (1, "count"): Score(0.0, {"by": "count"}),
        (1, "style"): Score(0.5, {"by": "style"}),
    }
    assert tables.leases.known(claim, VERSIONS | {"count": "8"}).keys() == {(1, "style")}

    tables.add([stored(0)], deterministic=True)
    alone = next(claim for claim in tables.claim_all(3) if claim.deterministic)
    assert tables.leases.known(alone, VERSIONS) == {}


def test_the_first_score_of_a_content_stands(make: Make):
    tables = make()
    tables.add([stored(0)])
    other = tables.add([stored(0)])
    first, second = tables.claim_all(0)
    tables.leases.record(first, {(0, "count"): Score(1.0)}, VERSIONS, 1)
    tables.leases.record(second, {(0, "count"): Score(2.0)}, VERSIONS, 2)
    assert tables.ledger.results(other, 0)[0] == [(0, {"count": Score(1.0)})]
    with tables.engines[0].begin() as connection:
        assert connection.scalar(select(func.count()).select_from(scores)) == 1


def test_equal_items_share_a_chunk_and_chunks_are_cut_by_items_and_bytes(make: Make):
    tables = make(chunk_items=3, chunk_bytes=100)
    sizes = [40, 40, 40, 200, 1, 1, 1, 1]
    items = [stored(number, size_bytes=size) for number, size in enumerate(sizes)]
    tables.add([*items, items[0]])
    chunks = sorted(sorted(task.number for task in claim.tasks) for claim in tables.claim_all(0))
    assert chunks == [[0, 1, 8], [2], [3], [4, 5, 6], [7]]


def test_at_most_so_many_chunks_are_sent_ahead(make: Make):
    tables = make(chunk_items=1, queued_chunks=2)
    tables.add([stored(number) for number in range(5)])
    claims = tables.claim_all(0)
    assert len(claims) == 2
    assert tables.leases.due(1) == []
    tables.score(claims[0], 1)
    (third,) = tables.leases.due(1)
    tables.leases.unsent(third, 2)
    (again,) = tables.leases.due(2)
    assert (again.chunk_id, again.again) == (third.chunk_id, False)


def test_a_later_small_job_need_not_wait_for_all_of_an_earlier_large_one(make: Make):
    tables = make(chunk_items=1, queued_chunks=1)
    large = tables.add([stored(number) for number in range(6)], now=0)
    small = tables.add([stored(100)], now=2.5)
    order = []
    for _ in range(7):
        (claim,) = tables.claim_all(10)
        tables.score(claim, 10)
        order.append(claim.job_id)
    assert order == [large] * 3 + [small] + [large] * 3


def test_cancelling_starts_nothing_more_and_keeps_what_is_scored(make: Make):
    tables = make(queued_chunks=2)
    job = tables.add([stored(number) for number in range(6)])
    message, _ = tables.leases.due(0)
    claim = tables.leases.claim(message.chunk_id, message.token, 1)
    (unclaimed,) = [other for other in (message, _) if other is not message]
    assert claim is not None
    assert tables.ledger.cancel(job, 5)
    assert not tables.ledger.cancel(job, 6)
    assert tables.leases.claim(unclaimed.chunk_id, unclaimed.token, 7) is None
    assert tables.leases.due(1000) == []
    assert not tables.score(claim, 8)  # what was at a worker arrives
    assert states(tables, job) == (JobState.CANCELLED, 2, 0, 4)
    assert [number for number, _ in tables.ledger.results(job, 0)[0]] == [task.number for task in claim.tasks]
    found = tables.ledger.progress(job)
    assert found is not None
    assert found.finished_at == 5


def test_an_idempotency_key_is_one_job(make: Make):
    tables = make()
    items = [stored(0), broken()]
    job = tables.add(items, idempotency_key="k")
    assert tables.add(items, now=9, idempotency_key="k") == job
    assert tables.add(items) != job
    for other in ([stored(1), broken()], [stored(0, "style"), broken()], [stored(0)]):
        with pytest.raises(KeyReused, match=job):
            tables.add(other, idempotency_key="k")
    assert [found.id for found in tables.ledger.latest(10)].count(job) == 1


def test_the_same_key_added_at_the_same_time_is_one_job(make: Make):
    tables = make()
    found: list[str] = []
    adding = [
        threading.Thread(target=lambda: found.append(tables.add([stored(0)], idempotency_key="k"))) for _ in range(8)
    ]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join(timeout=60)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_results_come_in_pages_and_in_order(make: Make):
    tables = make(chunk_items=100, queued_chunks=100)
    count = 2 * PAGE_ITEMS + 3
    job = tables.add([stored(number) for number in range(count)])
    for claim in reversed(tables.claim_all(0)):
        tables.score(claim, 1)
    numbers, start = [], 0
    starts = []
    while start is not None:
        page, start = tables.ledger.results(job, start)
        numbers += [number for number, _ in page]
        starts.append(start)
    assert numbers == list(range(count))
    assert starts == [PAGE_ITEMS, 2 * PAGE_ITEMS, None]


def test_counts_of_jobs_and_of_what_live_ones_wait_for(make: Make):
    tables = make()
    tables.add([stored(0, "count", "style"), broken()])
    gone = tables.add([stored(1)])
    tables.ledger.cancel(gone, 1)
    assert tables.ledger.counts() == ({"queued": 1, "running": 0, "done": 0, "cancelled": 1}, 2)


def test_writers_wait_for_each_other_and_lose_nothing(make: Make):
    """Read, then write, from several threads: without BEGIN IMMEDIATE, SQLite fails a transaction half-way."""
    tables = make()
    job = tables.add([stored(0)])
    chosen = select(jobs.c.item_count).where(jobs.c.id == job)
    faults: list[Exception] = []

    def count() -> None:
        try:
            for _ in range(20):
                with tables.engines[1].begin() as connection:
                    items = connection.scalar(chosen.with_for_update()) or 0
                    connection.execute(update(jobs).where(jobs.c.id == job).values(item_count=items + 1))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert faults == []
    found = tables.ledger.progress(job)
    assert found is not None
    assert found.items == 81


def test_two_sweepers_send_nothing_twice(make: Make):
    tables = make(chunk_items=1, queued_chunks=100)
    tables.add([stored(number) for number in range(30)])
    found: list[str] = []

    def sweep() -> None:
        found.extend(message.chunk_id for message in tables.leases.due(0))

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == len(set(found)) == 30


def test_sqlite_is_set_for_two_processes_and_for_a_loss_of_power(tmp_path):
    reading, _ = open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    with reading.begin() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
        }
    reading.dispose()
    assert found == {"journal_mode": "wal", "busy_timeout": 30_000, "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.sqlite", "no url"])
def test_a_database_that_cannot_be_opened_is_a_sentence(url: str):
    with pytest.raises(ValueError, match="the database of the jobs cannot be opened: "):
        open_database(url)


def test_an_error_message_may_hold_anything(make: Make):
    tables = make()
    job = tables.add([stored(0)])
    (claim,) = tables.claim_all(0)
    tables.leases.record(claim, {(0, "count"): ItemError("scorer_failed", "a\0b")}, {}, 1)
    assert tables.ledger.results(job, 0)[0] == [(0, {"count": ItemError("scorer_failed", "a\ufffdb")})]


def test_right_outcomes_are_told_apart(make: Make):
    """The tests' own yardstick: no two places of a job have the same right score."""
    tables = make(chunk_items=10)
    tables.add([stored(number, "count", "style") for number in range(4)])
    (claim,) = tables.claim_all(0)
    assert len({outcome.score for outcome in right_outcomes(claim).values() if isinstance(outcome, Score)}) == 8
