"""Jobs from end to end on files: gateway, worker and service as processes."""

import pytest
from job_stack import JobStack, item, right_results


def test_a_job_is_scored_and_the_same_content_is_not_scored_again(tmp_path):
    with JobStack(tmp_path, chunk_items=8) as stack:
        numbers = [*range(40), 3, 3]
        job = stack.submit([item(number) for number in numbers])
        assert stack.look(job)["state"] == "queued"
        stack.start_worker()
        ended = stack.finish(job)
        assert (ended["state"], ended["results"]) == ("done", {"scored": 42, "failed": 0, "pending": 0})
        assert stack.results(job) == right_results(numbers)
        assert sorted(stack.times_scored()) == list(range(40))


def test_two_workers_share_a_job_through_postgresql(tmp_path, postgresql_schema: str | None):
    if postgresql_schema is None:
        pytest.skip("TEST_POSTGRESQL names no database; make test-postgresql starts one")
    with JobStack(tmp_path, chunk_items=4, database=postgresql_schema) as stack:
        job = stack.submit([item(number) for number in range(60)])
        stack.start_worker()
        stack.start_worker()
        ended = stack.finish(job)
        assert (ended["state"], ended["results"]) == ("done", {"scored": 60, "failed": 0, "pending": 0})
        assert stack.results(job) == right_results(range(60))
        assert sorted(stack.times_scored()) == list(range(60))
