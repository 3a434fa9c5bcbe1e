"""F6: a worker, its broker or the gateway dies in the middle of a job. Each item ends with its own score, once."""

import os
import signal
import time

import pytest
from job_stack import JobStack, RedisServer, children, item, kill_group, redis_server, right_results
from waiting import eventually

NUMBERS = list(range(24))
SOON = {"chunk_items": 4, "chunk_timeout_s": 5.0, "lease_s": 6.0}
"""Chunks of .4 s, and a lost one is noticed within seconds."""


@pytest.fixture
def redis(tmp_path):
    with redis_server(tmp_path / "redis") as server:
        yield server


def submit_and_wait_for_the_first_scores(stack: JobStack) -> str:
    job = stack.submit([item(number) for number in NUMBERS])
    eventually(lambda: stack.look(job)["results"]["scored"] >= 4, within_s=60, what="the first chunk is scored")
    return job


def check_ledger(stack: JobStack, job: str, *, most_again: int) -> None:
    """Every item has its own score, and no more than what was in a dead worker's hands was scored again."""
    ended = stack.finish(job)
    assert ended["results"] == {"scored": len(NUMBERS), "failed": 0, "pending": 0}
    assert stack.results(job) == right_results(NUMBERS)
    times = stack.times_scored()
    assert set(times) == set(NUMBERS)
    assert len(times) <= len(NUMBERS) + most_again


def test_another_worker_takes_over_what_a_killed_one_held(tmp_path):
    with JobStack(tmp_path, score_s=0.1, **SOON) as stack:
        first = stack.start_worker()
        job = submit_and_wait_for_the_first_scores(stack)
        kill_group(first)
        stack.start_worker()
        check_ledger(stack, job, most_again=4)


def test_a_killed_child_of_a_worker_costs_its_chunk_a_second_try(tmp_path, redis: RedisServer):
    with JobStack(tmp_path, score_s=0.1, broker=redis.url, **SOON) as stack:
        worker = stack.start_worker()
        job = submit_and_wait_for_the_first_scores(stack)
        for child in children(worker):
            child.send_signal(signal.SIGKILL)
        check_ledger(stack, job, most_again=4)
        assert worker.poll() is None


def test_a_job_outlives_a_restart_of_redis(tmp_path, redis: RedisServer):
    with JobStack(tmp_path, score_s=0.1, broker=redis.url, **SOON) as stack:
        stack.start_worker()
        job = submit_and_wait_for_the_first_scores(stack)
        redis.kill()
        time.sleep(1)
        redis.start()
        check_ledger(stack, job, most_again=4)


def test_a_job_outlives_the_loss_of_all_messages(tmp_path):
    with (
        redis_server(tmp_path / "redis", appendonly=False) as redis,
        JobStack(tmp_path, score_s=0.1, broker=redis.url, **SOON) as stack,
    ):
        stack.start_worker()
        job = submit_and_wait_for_the_first_scores(stack)
        redis.kill()
        redis.start()  # empty
        check_ledger(stack, job, most_again=4)


def test_a_job_outlives_the_gateway(tmp_path):
    with JobStack(tmp_path, score_s=0.1, **SOON) as stack:
        stack.start_worker()
        job = submit_and_wait_for_the_first_scores(stack)
        assert stack.gateway is not None
        kill_group(stack.gateway)
        time.sleep(1)
        stack.start_gateway()
        check_ledger(stack, job, most_again=4)


def test_a_cancelled_job_starts_nothing_more_and_keeps_what_it_has(tmp_path):
    with JobStack(tmp_path, score_s=0.1, **SOON) as stack:
        stack.start_worker()
        job = submit_and_wait_for_the_first_scores(stack)
        assert stack.http.delete(f"/v1/jobs/{job}").status_code in {200, 202, 204}
        time.sleep(1.5)  # what was in hand has arrived by now
        scored = len(stack.times_scored())
        time.sleep(1.5)
        assert len(stack.times_scored()) == scored < len(NUMBERS)
        assert stack.look(job)["state"] == "cancelled"
        kept = [line for line in stack.results(job) if line["results"]]
        assert kept == right_results(NUMBERS)[: len(kept)]
        assert len(kept) >= 4


def test_the_same_key_is_the_same_job(tmp_path):
    with JobStack(tmp_path, **SOON) as stack:
        jobs = {stack.submit([item(1)], **{"Idempotency-Key": f"run {os.getpid()}"}) for _ in range(2)}
        assert len(jobs) == 1
