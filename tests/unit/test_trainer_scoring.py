"""Tables of outcomes, and the scoring thread against a server that lives in the test."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import httpx
import msgspec
import numpy as np
import pytest

import trainer.scoring
from reward_api import Item, ItemError, Limits, Outcome, RewardClient, RewardInfo, Score
from reward_api.wire import decode_request, encode_response
from trainer.config import RewardConfig
from trainer.prompts import Prompt
from trainer.scoring import RewardFailure, RewardScorer, tabulate

pytestmark = pytest.mark.unit


def prompt(text: str, *rewards: str) -> Prompt:
    return Prompt(text, {"tag": "colors", "include": []}, "colors", dict.fromkeys(rewards, 1.0))


# Tables

RING, SIGN = prompt("a ring", "geneval"), prompt("a sign", "geneval", "ocr")


def test_scores_go_to_their_slot_and_image():
    table = tabulate(
        [
            [{"geneval": Score(0.1)}, {"geneval": Score(0.2)}],
            [{"geneval": Score(0.3), "ocr": Score(0.5)}, {"geneval": Score(0.4), "ocr": Score(0.6)}],
        ],
        [RING, SIGN],
    )
    np.testing.assert_array_equal(table.scores["geneval"], [[0.1, 0.2], [0.3, 0.4]])
    np.testing.assert_array_equal(table.scores["ocr"], [[np.nan, np.nan], [0.5, 0.6]])


def test_a_reward_that_was_not_asked_for_is_absent_and_not_counted():
    table = tabulate([[{"geneval": Score(0.1)}], [{"geneval": Score(0.3), "ocr": Score(0.5)}]], [RING, SIGN])
    assert np.isnan(table.scores["ocr"][0, 0])
    assert table.asked == {"geneval": 2, "ocr": 1}
    assert table.missing == {"geneval": 0, "ocr": 0}
    assert table.missing_fraction == 0
    assert table.causes == {}
    table.check(0.0)


def test_a_score_that_was_not_asked_for_is_not_taken():
    table = tabulate([[{"geneval": Score(0.1), "ocr": Score(0.9)}], [{"geneval": Score(0.1)}]], [RING, SIGN])
    assert np.isnan(table.scores["ocr"]).all()
    assert table.missing["ocr"] == 1


def test_the_same_text_in_two_slots_stays_two_groups():
    table = tabulate([[{"geneval": Score(0.1)}], [{"geneval": Score(0.9)}]], [RING, RING])
    np.testing.assert_array_equal(table.scores["geneval"], [[0.1], [0.9]])


def test_missing_scores_are_nan_counted_and_their_first_cause_kept():
    lost = ItemError("scorer_failed", "the detector ran out of memory")
    later = ItemError("deadline", "too late")
    table = tabulate([[{"geneval": Score(0.0)}, {"geneval": lost}, {"geneval": later}, {}]], [RING])
    np.testing.assert_array_equal(table.scores["geneval"], [[0.0, np.nan, np.nan, np.nan]])
    assert (table.asked["geneval"], table.missing["geneval"], table.missing_fraction) == (4, 3, 0.75)
    cause = table.causes["geneval"]
    assert all(part in cause for part in ("scorer_failed", "the detector ran out of memory", "a ring"))


def test_a_detail_can_be_trained_on_instead_of_the_score():
    answers = [
        Score(0.5, {"correct": False}),
        Score(1.0, {"correct": True}),
        Score(0.7, {"correct": 0.25}),
        Score(0.7, {"correct": "yes"}),
        Score(0.7, {}),
    ]
    both = [{"geneval": answer, "ocr": Score(0.1, {"correct": True})} for answer in answers]
    table = tabulate([both], [SIGN], {"geneval": "correct"})
    np.testing.assert_array_equal(table.scores["geneval"], [[0.0, 1.0, 0.25, np.nan, np.nan]])
    np.testing.assert_array_equal(table.scores["ocr"], [[0.1] * 5])
    assert table.missing == {"geneval": 2, "ocr": 0}
    assert "'yes' as 'correct'" in table.causes["geneval"]


def test_an_answer_without_the_reward_says_so():
    table = tabulate([[{"ocr": Score(1.0)}]], [RING])
    assert "no geneval" in table.causes["geneval"]


def test_check_names_each_reward_above_the_limit_and_its_cause():
    lost = ItemError("scorer_failed", "no text found in the prompt")
    table = tabulate([[{"geneval": Score(1.0), "ocr": lost}] * 10 + [{"geneval": lost, "ocr": Score(1.0)}]], [SIGN])
    with pytest.raises(RewardFailure) as caught:
        table.check(0.5)
    message = str(caught.value)
    assert "more than 50%" in message
    assert "ocr: 10 of 11 scores missing" in message
    assert "no text found in the prompt" in message
    assert "geneval" not in message
    table.check(10 / 11)


def test_each_reward_is_held_to_the_limit_by_itself():
    """Half of a rare reward is lost: a small share of all scores, but a dead reward for those who asked."""
    lost = ItemError("no_replica", "none is ready")
    rare = tabulate(
        [[{"geneval": Score(1.0)}] * 20, [{"ocr": lost}] * 10 + [{"ocr": Score(1.0)}] * 10],
        [RING, prompt("a sign", "ocr")],
    )
    assert rare.missing_fraction == 0.25
    with pytest.raises(RewardFailure, match="ocr: 10 of 20"):
        rare.check(0.3)


# The scoring thread

Respond = Callable[[Sequence[Item | ItemError]], list[dict[str, Outcome]]]
Serve = Callable[..., AbstractContextManager[RewardScorer]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A scorer whose server answers with ``respond``; connections are refused where there is none."""

    @contextmanager
    def serve(respond: Respond | None = None, **settings: float) -> Iterator[RewardScorer]:
        def answer(request: httpx.Request) -> httpx.Response:
            if respond is None:
                raise httpx.ConnectError("connection refused")
            if request.url.path == "/v1/rewards":
                body = msgspec.json.encode({"rewards": [RewardInfo("geneval", "1"), RewardInfo("ocr", "2")]})
                return httpx.Response(200, content=body, headers={"Content-Type": "application/json"})
            asked = decode_request(request.headers["content-type"], request.content, Limits())
            body, kind = encode_response(respond(asked.items), request.headers["accept"])
            return httpx.Response(200, content=body, headers={"Content-Type": kind})

        client = partial(RewardClient, attempts=1, transport=httpx.MockTransport(answer))
        monkeypatch.setattr(trainer.scoring, "RewardClient", client)
        with RewardScorer(RewardConfig(url="http://gateway.test", **settings)) as scorer:
            yield scorer

    return serve


def red_share(items: Sequence[Item | ItemError]) -> list[dict[str, Outcome]]:
    answers: list[dict[str, Outcome]] = []
    for item in items:
        assert isinstance(item, Item)
        answers.append(
            {name: Score(float(item.image[..., 0].mean()), {"prompt": item.prompt}) for name in item.rewards}
        )
    return answers


def pictures(*reds: int) -> np.ndarray:
    return np.array([np.full((4, 4, 3), red, dtype=np.uint8) for red in reds])


def test_each_image_is_scored_with_its_prompts_rewards(serve: Serve):
    with serve(red_share) as scorer:
        pending = scorer.submit(pictures(10, 20), [RING, SIGN])
        answers = scorer.collect(pending, "epoch 3")
    assert answers == [
        {"geneval": Score(10.0, {"prompt": "a ring"})},
        {"geneval": Score(20.0, {"prompt": "a sign"}), "ocr": Score(20.0, {"prompt": "a sign"})},
    ]


def test_metadata_goes_along(serve: Serve):
    seen: list[object] = []

    def respond(items: Sequence[Item | ItemError]) -> list[dict[str, Outcome]]:
        seen.extend(item.metadata for item in items if isinstance(item, Item))
        return red_share(items)

    with serve(respond) as scorer:
        scorer.collect(scorer.submit(pictures(1), [RING]), "a test")
    assert seen == [RING.metadata]


def test_submit_does_not_wait_and_collect_counts_its_wait(serve: Serve):
    may_answer = threading.Event()

    def slow(items: Sequence[Item | ItemError]) -> list[dict[str, Outcome]]:
        assert may_answer.wait(10)
        return red_share(items)

    with serve(slow) as scorer:
        pending = scorer.submit(pictures(10), [RING])
        assert not pending.done()
        assert scorer.exposed_wait_s == 0
        timer = threading.Timer(0.1, may_answer.set)
        timer.start()
        scorer.collect(pending, "epoch 3")
        timer.join()
        waited = scorer.exposed_wait_s
        assert waited > 0.05

        scored_meanwhile = scorer.submit(pictures(10), [RING])
        scored_meanwhile.result(timeout=10)
        scorer.collect(scored_meanwhile, "epoch 3")
        assert scorer.exposed_wait_s - waited < 0.05


def test_unequal_numbers_of_images_and_prompts_are_refused(serve: Serve):
    with serve(red_share) as scorer, pytest.raises(ValueError, match="shorter"):
        scorer.submit(pictures(1, 2), [RING])


def test_rewards_that_are_not_offered_are_named(serve: Serve):
    with serve(red_share) as scorer:
        scorer.require({"geneval", "ocr"})
        with pytest.raises(RewardFailure, match=r"gateway\.test does not offer hps, pickscore; it offers geneval, ocr"):
            scorer.require({"geneval", "pickscore", "hps"})


def test_no_server_is_a_failure_that_names_url_cause_and_work(serve: Serve):
    with serve() as scorer:
        with pytest.raises(RewardFailure, match=r"no rewards at http://gateway\.test.*connection refused"):
            scorer.available()
        pending = scorer.submit(pictures(1), [RING])
        with pytest.raises(RewardFailure, match=r"no scores for epoch 3.*gateway\.test.*connection refused"):
            scorer.collect(pending, "epoch 3")
        assert scorer.exposed_wait_s > 0


def test_closing_gives_up_what_is_in_flight(monkeypatch: pytest.MonkeyPatch):
    async def never(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(600)
        raise AssertionError("closing did not cancel the request")

    monkeypatch.setattr(trainer.scoring, "RewardClient", partial(RewardClient, transport=httpx.MockTransport(never)))
    with RewardScorer(RewardConfig(url="http://gateway.test")) as scorer:
        pending = scorer.submit(pictures(10), [RING])
        thread = scorer._thread
    assert pending.cancelled()
    assert not thread.is_alive()
