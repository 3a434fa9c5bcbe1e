"""What a worker does with a chunk, before a gateway that is a small function."""

from collections.abc import Callable, Iterator, Mapping

import httpx
import numpy as np
import pytest
from job_tables import Tables, broken

from gateway.jobs.chunk import PAUSE_CAP_S, pause_s, run_chunk, settle
from gateway.jobs.job import Claim, JobState, StoredItem, write_content
from gateway.jobs.store import ImageStore, digest_of
from reward_api import Item, ItemError, Limits, Outcome, RewardClient, Score
from reward_api.wire import MSGPACK, decode_request, encode_response

pytestmark = pytest.mark.unit


def refusal(status: int) -> httpx.Response:
    headers = {"content-type": "application/problem+json"}
    return httpx.Response(status, content=b'{"title": "No", "detail": "not now"}', headers=headers)


class FakeGateway(httpx.AsyncBaseTransport):
    """Scores an image by its red; keeps what it was asked."""

    def __init__(self) -> None:
        self.versions = {"count": "7", "style": "2"}
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.answer: Callable[[int, str], Outcome] = lambda red, reward: Score(red, {"by": reward})
        self.refusal: httpx.Response | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.refusal is not None:
            return self.refusal
        if request.url.path == "/v1/rewards":
            listed = [{"name": name, "version": version} for name, version in self.versions.items()]
            return httpx.Response(200, json={"rewards": listed})
        parsed = decode_request(request.headers["content-type"], await request.aread(), Limits())
        outcomes: list[Mapping[str, Outcome]] = []
        for item in parsed.items:
            assert isinstance(item, Item)
            red = int(item.image[0, 0, 0])
            self.asked.append((red, item.rewards))
            outcomes.append({name: self.answer(red, name) for name in item.rewards})
        body, kind = encode_response(outcomes, MSGPACK)
        return httpx.Response(200, content=body, headers={"content-type": kind})


class Bench:
    """Tables, a store, and a worker that calls a FakeGateway."""

    def __init__(self, folder) -> None:
        self.tables = Tables(f"sqlite:///{folder / 'jobs.sqlite'}", chunk_items=10)
        self.store = ImageStore(folder / "images")
        self.gateway = FakeGateway()
        self.now = 0.0

    def image(self, red: int, *rewards: str) -> StoredItem:
        pixels = np.full((1, 1, 3), red, np.uint8)
        digest = digest_of(pixels)
        self.store.put(digest, pixels)
        return StoredItem(rewards or ("count",), digest, 3, write_content("a cat", {"red": red}))

    def work(self, *, tries: int = 3, max_claims: int = 2) -> None:
        """Runs all chunks that are due."""
        for message in self.tables.leases.due(self.now):
            run_chunk(
                message.chunk_id,
                message.token,
                self.tables.leases,
                self.store,
                lambda: RewardClient("http://gateway", timeout_s=5, attempts=1, transport=self.gateway),
                tries=tries,
                max_claims=max_claims,
                clock=lambda: self.now,
            )

    def results(self, job: str) -> list[dict[str, Outcome]]:
        return [results for _, results in self.tables.ledger.results(job, 0)[0]]

    def state(self, job: str) -> JobState:
        found = self.tables.ledger.progress(job)
        assert found is not None
        return found.state


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.tables.close()


def test_a_chunk_is_scored_each_content_once_and_only_for_what_it_lacks(bench: Bench):
    first = bench.tables.add([bench.image(1), broken(), bench.image(2, "count", "style"), bench.image(1, "style")])
    bench.work()
    assert bench.state(first) == JobState.DONE
    assert bench.results(first) == [
        {"count": Score(1.0, {"by": "count"})},
        {"count": ItemError("bad_image", "not an image")},
        {"count": Score(2.0, {"by": "count"}), "style": Score(2.0, {"by": "style"})},
        {"style": Score(1.0, {"by": "style"})},
    ]
    assert sorted((red, sorted(rewards)) for red, rewards in bench.gateway.asked) == [
        (1, ["count", "style"]),
        (2, ["count", "style"]),
    ]
    bench.gateway.asked.clear()
    second = bench.tables.add([bench.image(1), bench.image(3), bench.image(2, "style")])
    bench.work()
    assert bench.results(second)[0] == {"count": Score(1.0, {"by": "count"})}
    assert bench.gateway.asked == [(3, ("count",))]


def test_a_new_version_is_scored_anew(bench: Bench):
    bench.tables.add([bench.image(1)])
    bench.work()
    bench.gateway.versions["count"] = "8"
    bench.gateway.answer = lambda red, reward: Score(100 + red)
    again = bench.tables.add([bench.image(1)])
    bench.work()
    assert bench.results(again) == [{"count": Score(101.0)}]


def test_a_chunk_waits_for_a_gateway_that_is_away_and_gives_up_after_so_many_tries(bench: Bench):
    job = bench.tables.add([bench.image(1)])
    bench.gateway.refusal = refusal(503)
    waits = []
    while bench.state(job) != JobState.DONE:
        bench.work()
        if bench.state(job) == JobState.DONE:
            break
        waited = 0
        while not bench.tables.leases.due(bench.now):
            bench.now += 1
            waited += 1
        bench.now += 100  # that message is lost
        waits.append(waited)
    assert waits == [1, 2]
    (results,) = bench.results(job)
    assert isinstance(results["count"], ItemError)
    assert results["count"].code == "no_replica"
    assert "503" in results["count"].message


def test_after_an_absence_everything_is_scored(bench: Bench):
    job = bench.tables.add([bench.image(1)])
    bench.gateway.refusal = refusal(401)
    bench.work()
    assert bench.state(job) == JobState.RUNNING
    bench.gateway.refusal = None
    bench.gateway.versions["count"] = ""  # a gateway none of whose replicas has been up
    bench.now = 10
    bench.work()
    assert bench.gateway.asked == []
    bench.gateway.versions["count"] = "7"
    bench.now = 20
    bench.work()
    assert bench.results(job) == [{"count": Score(1.0, {"by": "count"})}]


def test_an_item_error_of_a_scorer_stands_and_harms_no_other(bench: Bench):
    fault = ItemError("missing_text", "no quotes")
    bench.gateway.answer = lambda red, reward: fault if red == 2 else Score(red)
    job = bench.tables.add([bench.image(1), bench.image(2)])
    bench.work()
    assert bench.results(job) == [{"count": Score(1.0)}, {"count": fault}]


def test_a_request_the_gateway_refuses_is_not_sent_again(bench: Bench):
    job = bench.tables.add([bench.image(1)])

    class Refusing(FakeGateway):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/v1/score":
                return refusal(422)
            return await super().handle_async_request(request)

    bench.gateway = Refusing()
    bench.work()
    (results,) = bench.results(job)
    assert isinstance(results["count"], ItemError)
    assert (results["count"].code, bench.state(job)) == ("scorer_failed", JobState.DONE)


def test_a_reward_that_is_no_longer_served_is_named(bench: Bench):
    job = bench.tables.add([bench.image(1, "count", "style")])
    del bench.gateway.versions["style"]
    bench.work()
    (results,) = bench.results(job)
    assert results["count"] == Score(1.0, {"by": "count"})
    assert isinstance(results["style"], ItemError)
    assert (results["style"].code, "'style'" in results["style"].message) == ("unknown_reward", True)


def test_a_lost_image_is_an_error_of_its_items_alone(bench: Bench):
    lost = bench.image(1)
    job = bench.tables.add([lost, bench.image(2)])
    bench.store.remove(lost.image)
    bench.work()
    error, score = (results["count"] for results in bench.results(job))
    assert isinstance(error, ItemError)
    assert lost.image in error.message
    assert score == Score(2.0, {"by": "count"})


def test_details_that_are_no_json_are_an_error(bench: Bench):
    import msgspec

    strange = msgspec.msgpack.Ext(5, b"x")
    bench.gateway.answer = lambda red, reward: Score(red, {"x": strange} if red == 1 else {})
    job = bench.tables.add([bench.image(1), bench.image(2)])
    bench.work()
    error, score = (results["count"] for results in bench.results(job))
    assert isinstance(error, ItemError)
    assert "no JSON" in error.message
    assert score == Score(2.0)


def test_a_chunk_over_which_workers_die_is_given_up(bench: Bench):
    job = bench.tables.add([bench.image(1)])
    for _ in range(2):
        assert bench.tables.claim_all(bench.now)
        bench.now += 100
    bench.work(max_claims=2)
    (results,) = bench.results(job)
    assert results == {"count": ItemError("scorer_failed", "2 workers in a row died over the items of this chunk")}
    assert bench.gateway.asked == []


def test_a_message_out_of_date_does_nothing(bench: Bench):
    bench.tables.add([bench.image(1)])
    (old,) = bench.tables.leases.due(0)
    bench.tables.leases.due(100)
    run_chunk(
        old.chunk_id, old.token, bench.tables.leases, bench.store, pytest.fail, tries=1, max_claims=1, clock=lambda: 101
    )


def claim(troubles: int) -> Claim:
    return Claim("c", "t", "j", deterministic=False, claims=1, troubles=troubles)


def test_what_is_recorded_and_what_is_tried_again():
    score, passing, lasting = Score(1.0), ItemError("deadline", "late"), ItemError("bad_image", "broken")
    outcomes: dict[tuple[int, str], Outcome] = {(0, "a"): score, (1, "a"): passing, (2, "a"): lasting}
    assert settle(outcomes, claim(9), tries=10) == ({(0, "a"): score, (2, "a"): lasting}, 1.0)
    del outcomes[0, "a"]
    assert settle(outcomes, claim(8), tries=10) == ({(2, "a"): lasting}, PAUSE_CAP_S)
    assert settle(outcomes, claim(9), tries=10)[0] == outcomes


def test_pauses_grow_to_a_cap():
    pauses = [pause_s(troubles) for troubles in range(2000)]
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_CAP_S
