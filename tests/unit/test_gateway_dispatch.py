import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from gateway.config import RewardRoute
from gateway.dispatch import Dispatcher
from gateway.flights import Ticket
from gateway.metrics import GatewayMetrics
from gateway.upstream import Busy, Failed, Refused, Unreachable
from reward_api import Item, ItemError, Outcome, RewardInfo, Score

pytestmark = pytest.mark.unit

A, B = "http://a", "http://b"
Answer = Callable[[str, list[int]], Awaitable[list[Outcome]]]


def item(number: int) -> Item:
    return Item(np.full((2, 2, 3), number, np.uint8), "a prompt")


async def turns() -> None:
    """Lets everything happen that needs no time."""
    for _ in range(5):
        await asyncio.sleep(0)


async def right(url: str, numbers: list[int]) -> list[Outcome]:
    return [Score(float(n)) for n in numbers]


class Services:
    """What the dispatcher sends to; `sent` lists (url, item numbers, deterministic) of every batch."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.sent: list[tuple[str, list[int], bool]] = []

    async def send(self, url: str, items: Sequence[Item], *, deterministic: bool, timeout_s: float) -> list[Outcome]:
        numbers = [int(one.image[0, 0, 0]) for one in items]
        self.sent.append((url, numbers, deterministic))
        try:
            async with asyncio.timeout(timeout_s):
                return await self.answer(url, numbers)
        except TimeoutError as error:
            raise Failed(f"{url}: no answer", timed_out=True) from error

    def dispatcher(self, *, up: Sequence[str] = (A, B), **route: object) -> Dispatcher:
        settings = {"replicas": [A, B], "max_batch": 4, "inflight_batches": 1, "no_replica_grace_s": 0.05}
        settings |= {"share_equal": False} | route
        dispatcher = Dispatcher("fake", RewardRoute(**settings), self.send, GatewayMetrics(), probe_misses=2)
        dispatcher.list_replicas(dispatcher.route.replicas)
        for replica in dispatcher.replicas.replicas:
            if replica.url in up:
                dispatcher.probed(replica, True)
        return dispatcher


class Held(Services):
    """Answers once its gate is open."""

    def __init__(self) -> None:
        super().__init__(self._held)
        self.gate = asyncio.Event()

    async def _held(self, url: str, numbers: list[int]) -> list[Outcome]:
        await self.gate.wait()
        return await right(url, numbers)


async def outcomes_of(
    dispatcher: Dispatcher, count: int, *, timeout_s: float = 5.0, deterministic: bool = False
) -> list[Outcome]:
    tickets = dispatcher.submit([item(n) for n in range(count)], timeout_s=timeout_s, deterministic=deterministic)
    async with asyncio.timeout(5.0):
        return [await ticket.outcome for ticket in tickets]


def scores(outcomes: Sequence[Outcome]) -> list[float]:
    assert all(isinstance(outcome, Score) for outcome in outcomes), outcomes
    return [outcome.score for outcome in outcomes if isinstance(outcome, Score)]


async def test_outcomes_stand_at_the_place_of_their_item_whatever_arrives_first():
    async def slow_first(url: str, numbers: list[int]) -> list[Outcome]:
        await asyncio.sleep(0.03 if 0 in numbers else 0.0)
        return await right(url, numbers)

    services = Services(slow_first)
    dispatcher = services.dispatcher()
    assert scores(await outcomes_of(dispatcher, 11)) == list(range(11))
    assert {url for url, _, _ in services.sent} == {A, B}
    assert max(len(numbers) for _, numbers, _ in services.sent) == 4


async def test_items_gather_only_while_every_replica_is_busy():
    services = Held()
    dispatcher = services.dispatcher()
    tickets = []
    for n in range(5):
        tickets += dispatcher.submit([item(n)], timeout_s=5.0)
        await turns()
    assert [numbers for _, numbers, _ in services.sent] == [[0], [1]]
    services.gate.set()
    assert scores([await ticket.outcome for ticket in tickets]) == [0, 1, 2, 3, 4]
    assert services.sent[2][1] == [2, 3, 4]


async def test_a_busy_replica_gets_a_second_batch_only_when_it_is_full():
    services = Held()
    dispatcher = services.dispatcher(up=[A], inflight_batches=2)
    tickets = []
    for n in range(6):
        tickets += dispatcher.submit([item(n)], timeout_s=5.0)
        await turns()
    assert [numbers for _, numbers, _ in services.sent] == [[0], [1, 2, 3, 4]]
    services.gate.set()
    assert scores([await ticket.outcome for ticket in tickets]) == [0, 1, 2, 3, 4, 5]


async def test_requests_read_in_one_turn_share_a_batch_and_need_no_more_room_than_they_take():
    services = Services(right)
    dispatcher = services.dispatcher(up=[A], queue_items=4)
    first = dispatcher.submit([item(n) for n in range(4)], timeout_s=5.0)
    assert dispatcher.refused_for([item(4)]) is None
    second = dispatcher.submit([item(4)], timeout_s=5.0) + dispatcher.submit([item(5)], timeout_s=5.0)
    assert scores([await ticket.outcome for ticket in first + second]) == [0, 1, 2, 3, 4, 5]
    assert [numbers for _, numbers, _ in services.sent] == [[0, 1, 2, 3], [4, 5]]


async def test_a_delay_gathers_until_the_oldest_has_waited():
    services = Services(right)
    dispatcher = services.dispatcher(max_delay_ms=30)
    first = asyncio.create_task(outcomes_of(dispatcher, 1))
    await asyncio.sleep(0.01)
    assert not services.sent
    await outcomes_of(dispatcher, 1)
    await first
    assert [numbers for _, numbers, _ in services.sent] == [[0, 0]]


async def test_what_waits_is_spread_over_idle_replicas_unless_it_shall_gather():
    services = Services(right)
    await outcomes_of(services.dispatcher(), 3)
    await outcomes_of(services.dispatcher(max_delay_ms=1), 3)
    await outcomes_of(services.dispatcher(max_batch=2), 5)
    assert [numbers for _, numbers, _ in services.sent] == [[0, 1], [2], [0, 1, 2], [0, 1], [2, 3], [4]]


async def test_a_busy_replica_gets_whole_batches_while_another_is_idle():
    services = Held()
    dispatcher = services.dispatcher(up=[A], inflight_batches=2)
    running = [asyncio.create_task(outcomes_of(dispatcher, 1))]
    await turns()
    dispatcher.probed(dispatcher.replicas.replicas[1], True)
    running.append(asyncio.create_task(outcomes_of(dispatcher, 7)))
    await turns()
    assert [(url, len(numbers)) for url, numbers, _ in services.sent] == [(A, 1), (B, 4)]  # three gather meanwhile
    services.gate.set()
    await asyncio.gather(*running)


async def test_the_drain_rate_is_that_of_full_batches():
    async def takes(url: str, numbers: list[int]) -> list[Outcome]:
        await asyncio.sleep(0.02)
        return await right(url, numbers)

    dispatcher = Services(takes).dispatcher(up=[A], max_batch=4)
    for _ in range(8):
        await outcomes_of(dispatcher, 1)
    assert dispatcher.drain.per_second(time.monotonic()) is None  # one at a time tells nothing of a queue
    await outcomes_of(dispatcher, 40)
    rate = dispatcher.drain.per_second(time.monotonic())
    assert rate is not None
    assert 60 < rate <= 200  # 4 in 20 ms, far from the 50 of one at a time


async def test_a_dead_replica_loses_nothing():
    async def a_dies(url: str, numbers: list[int]) -> list[Outcome]:
        await asyncio.sleep(0.01)
        if url == A:
            raise Failed("connection reset", connection_lost=True)
        return await right(url, numbers)

    services = Services(a_dies)
    dispatcher = services.dispatcher()
    assert scores(await outcomes_of(dispatcher, 20)) == list(range(20))
    assert [replica.up for replica in dispatcher.replicas.replicas] == [False, True]
    assert sum(url == A for url, _, _ in services.sent) == 1


async def test_an_item_that_kills_its_replicas_is_found_and_the_others_get_their_scores():
    async def poisoned(url: str, numbers: list[int]) -> list[Outcome]:
        await asyncio.sleep(0.001)
        if 2 in numbers:
            raise Failed("500 Internal Server Error")
        return await right(url, numbers)

    services = Services(poisoned)
    outcomes = await outcomes_of(services.dispatcher(inflight_batches=2), 16)
    assert isinstance(outcomes[2], ItemError)
    assert outcomes[2].code == "scorer_failed"
    assert "500" in outcomes[2].message
    assert scores(outcomes[:2] + outcomes[3:]) == [n for n in range(16) if n != 2]
    blamed = [(url, numbers) for url, numbers, _ in services.sent if 2 in numbers]
    assert [len(numbers) for _, numbers in blamed] == [4, 4, 1, 1]
    assert {url for url, _ in blamed[:2]} == {A, B}  # the second try goes to the other replica


async def test_a_suspect_never_takes_an_innocent_batch_along():
    alive: dict[str, int] = {A: 0, B: 0}
    company: list[int] = []

    async def poisoned(url: str, numbers: list[int]) -> list[Outcome]:
        alive[url] += 1
        await asyncio.sleep(0.002)
        if 0 in numbers:
            company.append(alive[url])
            alive[url] -= 1
            raise Failed("500")
        alive[url] -= 1
        return await right(url, numbers)

    outcomes = await outcomes_of(Services(poisoned).dispatcher(inflight_batches=3), 40)
    assert sum(isinstance(outcome, ItemError) for outcome in outcomes) == 1
    assert company[1:] == [1, 1, 1]


async def test_a_batch_that_was_never_delivered_is_no_suspect():
    async def a_refuses(url: str, numbers: list[int]) -> list[Outcome]:
        if url == A:
            raise Unreachable("connection refused")
        return await right(url, numbers)

    services = Services(a_refuses)
    assert scores(await outcomes_of(services.dispatcher(), 4)) == [0, 1, 2, 3]
    assert services.sent == [(A, [0, 1], False), (B, [2, 3], False), (B, [0, 1], False)]


async def test_a_busy_replica_is_left_alone_and_its_items_are_kept():
    async def busy_once(url: str, numbers: list[int]) -> list[Outcome]:
        if len(services.sent) == 1:
            raise Busy("429", 0.03)
        if len(services.sent) == 2:
            return [Score(0.0), ItemError("overloaded", "stopping"), ItemError("overloaded", "stopping")]
        return await right(url, numbers)

    services = Services(busy_once)
    assert scores(await outcomes_of(services.dispatcher(max_delay_ms=1), 3)) == [0, 1, 2]
    assert [numbers for _, numbers, _ in services.sent] == [[0, 1, 2], [0, 1, 2], [1, 2]]


async def test_a_refused_batch_is_taken_apart_without_blame():
    async def too_large(url: str, numbers: list[int]) -> list[Outcome]:
        if 1 in numbers:
            raise Refused(413, "body exceeds the limit")
        return await right(url, numbers)

    dispatcher = Services(too_large).dispatcher()
    outcomes = await outcomes_of(dispatcher, 3)
    assert isinstance(outcomes[1], ItemError)
    assert outcomes[1].code == "image_too_large"
    assert scores([outcomes[0], outcomes[2]]) == [0, 2]
    assert all(replica.failures == 0 for replica in dispatcher.replicas.replicas)


async def test_without_replica_items_wait_a_moment_and_are_told():
    dispatcher = Services(right).dispatcher(up=[])
    outcomes = await outcomes_of(dispatcher, 2)
    assert [outcome.code for outcome in outcomes if isinstance(outcome, ItemError)] == ["no_replica"] * 2


async def test_a_replica_that_comes_back_in_time_serves_what_waits():
    dispatcher = Services(right).dispatcher(up=[], no_replica_grace_s=1.0)
    waiting = asyncio.create_task(outcomes_of(dispatcher, 2))
    await asyncio.sleep(0.01)
    dispatcher.probed(dispatcher.replicas.replicas[1], True)
    assert scores(await waiting) == [0, 1]


async def test_dead_items_are_not_sent():
    services = Held()
    dispatcher = services.dispatcher(up=[A])
    running = asyncio.create_task(outcomes_of(dispatcher, 1))
    await turns()
    late = dispatcher.submit([item(7)], timeout_s=0.01)
    abandoned = dispatcher.submit([item(8)], timeout_s=5.0)
    dispatcher.abandon(abandoned)
    assert dispatcher.queue.items == 1
    await asyncio.sleep(0.02)
    services.gate.set()
    await running
    outcome = await late[0].outcome
    assert isinstance(outcome, ItemError)
    assert outcome.code == "deadline"
    assert [numbers for _, numbers, _ in services.sent] == [[0]]


async def test_a_silent_replica_costs_one_batch_timeout():
    async def a_hangs(url: str, numbers: list[int]) -> list[Outcome]:
        if url == A:
            await asyncio.sleep(10)
        return await right(url, numbers)

    dispatcher = Services(a_hangs).dispatcher(batch_timeout_s=0.03)
    assert scores(await outcomes_of(dispatcher, 4)) == [0, 1, 2, 3]
    assert dispatcher.replicas.replicas[0].failures == 1


async def test_deterministic_items_travel_by_themselves_unless_the_scorer_does_not_care():
    services = Services(right)
    dispatcher = services.dispatcher(up=[A])
    await outcomes_of(dispatcher, 2, deterministic=True)
    dispatcher.learn(dispatcher.replicas.replicas[0], RewardInfo("fake", "1", batch_invariant=True, batch_limit=2))
    await outcomes_of(dispatcher, 3, deterministic=True)
    assert [(numbers, det) for _, numbers, det in services.sent] == [([0, 1], True), ([0, 1], False), ([2], False)]


async def test_a_full_queue_says_when_to_return():
    services = Held()
    dispatcher = services.dispatcher(up=[A], queue_items=8, max_batch=2)
    running = []
    for _ in range(2):
        running.append(asyncio.create_task(outcomes_of(dispatcher, 4)))
        await turns()
    assert dispatcher.refused_for([item(0)]) is None  # 6 wait, and the eighth place is for a client that has few
    assert dispatcher.refused_for([item(0)] * 2) == 1
    assert dispatcher.refused_for([item(0)] * 2, "another") == 1
    dispatcher.submit([item(0)], timeout_s=5.0)
    assert dispatcher.refused_for([item(0)]) == 1
    assert dispatcher.refused_for([item(0)], "another") is None
    services.gate.set()
    for each in running:
        await each
    assert dispatcher.queue.items == 0


async def test_who_could_only_be_scored_too_late_is_refused_at_once():
    dispatcher = Services(right).dispatcher(up=[], no_replica_grace_s=30)
    dispatcher.drain.per_second = lambda now: 10.0  # type: ignore[method-assign]
    dispatcher.submit([item(n) for n in range(60)], timeout_s=60.0, client="training")
    await turns()
    assert dispatcher.refused_for([item(0)], "training", timeout_s=8.0) is None  # 6 s of 8
    assert dispatcher.refused_for([item(0)], "training", timeout_s=4.0) == 3  # 6 s, of 4 no more than 3
    assert dispatcher.refused_for([item(0)], "evaluation", timeout_s=4.0) is None  # it does not wait behind all
    await dispatcher.aclose()


async def test_closing_answers_those_who_wait():
    async def never(url: str, numbers: list[int]) -> list[Outcome]:
        await asyncio.sleep(60)
        return []

    dispatcher = Services(never).dispatcher(up=[A], max_batch=1)
    tickets = dispatcher.submit([item(0), item(1)], timeout_s=5.0)
    await turns()
    await dispatcher.aclose()
    outcomes = [ticket.outcome.result() for ticket in tickets]
    assert [outcome.code for outcome in outcomes if isinstance(outcome, ItemError)] == ["no_replica"] * 2


async def answers(tickets: Sequence[Ticket]) -> list[Outcome]:
    async with asyncio.timeout(5.0):
        return [await ticket.outcome for ticket in tickets]


async def test_a_replica_that_falls_silent_gives_its_batch_back():
    async def a_hangs(url: str, numbers: list[int]) -> list[Outcome]:
        if url == A:
            await asyncio.sleep(60)
        return await right(url, numbers)

    services = Services(a_hangs)
    dispatcher = services.dispatcher(up=[A])
    tickets = dispatcher.submit([item(n) for n in range(4)], timeout_s=5.0)
    await turns()
    a, b = dispatcher.replicas.replicas
    dispatcher.probed(b, True)
    dispatcher.probed(a, None)
    await turns()
    assert [url for url, _, _ in services.sent] == [A]  # one silent probe is not enough
    dispatcher.probed(a, None)
    assert scores(await answers(tickets)) == [0, 1, 2, 3]
    assert [url for url, _, _ in services.sent] == [A, B]
    assert (a.up, a.inflight_batches, a.inflight_items) == (False, 0, 0)


async def test_a_replica_that_says_it_is_not_ready_keeps_its_batch():
    async def slow(url: str, numbers: list[int]) -> list[Outcome]:
        await asyncio.sleep(0.03)
        return await right(url, numbers)

    services = Services(slow)
    dispatcher = services.dispatcher(up=[A])
    tickets = dispatcher.submit([item(1)], timeout_s=5.0)
    await turns()
    dispatcher.probed(dispatcher.replicas.replicas[0], False)
    assert scores(await answers(tickets)) == [1]
    assert len(services.sent) == 1


async def test_equal_items_under_way_are_scored_once():
    services = Held()
    dispatcher = services.dispatcher(up=[A], share_equal=True)
    in_flight = dispatcher.submit([item(1), item(1)], timeout_s=5.0)
    await turns()
    waiting = dispatcher.submit([item(2)], timeout_s=5.0)
    again = dispatcher.submit([item(2), item(1), item(3)], timeout_s=5.0)
    alone = dispatcher.submit([item(1)], timeout_s=5.0, deterministic=True)
    dispatcher.abandon(waiting)  # the other who asks for 2 still waits
    services.gate.set()
    assert scores(await answers(in_flight + again + alone)) == [1, 1, 2, 1, 3, 1]
    assert [numbers for _, numbers, _ in services.sent] == [[1], [2, 3], [1]]
    assert len(dispatcher.under_way) == 0


async def test_who_joins_later_may_wait_longer_than_who_asked_first():
    async def slow_once(url: str, numbers: list[int]) -> list[Outcome]:
        if len(services.sent) == 1:
            await asyncio.sleep(60)
        return await right(url, numbers)

    services = Services(slow_once)
    dispatcher = services.dispatcher(up=[A], share_equal=True)
    first = dispatcher.submit([item(1)], timeout_s=0.05)
    await turns()
    second = dispatcher.submit([item(1)], timeout_s=5.0)
    assert scores(await answers(second)) == [1]
    assert scores(await answers(first)) == [1]
    assert len(services.sent) == 2
    assert dispatcher.replicas.replicas[0].failures == 0


async def test_kept_scores_are_of_the_same_version():
    services = Services(right)
    dispatcher = services.dispatcher(up=[A], cache_entries=10)
    replica = dispatcher.replicas.replicas[0]
    dispatcher.learn(replica, RewardInfo("fake", "1"))
    for _ in range(2):
        assert scores(await answers(dispatcher.submit([item(1)], timeout_s=5.0))) == [1]
    assert len(services.sent) == 1
    dispatcher.learn(replica, RewardInfo("fake", "2"))
    assert scores(await answers(dispatcher.submit([item(1)], timeout_s=5.0))) == [1]
    assert len(services.sent) == 2


async def test_a_batch_nobody_wants_is_called_back():
    called_back = asyncio.Event()

    async def never(url: str, numbers: list[int]) -> list[Outcome]:
        try:
            await asyncio.sleep(60)
        finally:
            called_back.set()
        return []

    dispatcher = Services(never).dispatcher(up=[A], share_equal=True)
    tickets = dispatcher.submit([item(0), item(1)], timeout_s=5.0)
    await turns()
    dispatcher.abandon(tickets[:1])
    await turns()
    assert dispatcher.replicas.replicas[0].inflight_batches == 1
    dispatcher.abandon(tickets[1:])
    async with asyncio.timeout(5.0):
        await called_back.wait()
    await turns()
    assert dispatcher.replicas.replicas[0].inflight_batches == 0
    assert dispatcher.replicas.replicas[0].failures == 0
    assert len(dispatcher.under_way) == 0


async def test_a_late_batch_is_sent_to_a_second_replica_and_the_first_answer_counts():
    async def a_stalls(url: str, numbers: list[int]) -> list[Outcome]:
        await asyncio.sleep(60 if url == A else 0)
        return await right(url, numbers)

    services = Services(a_stalls)
    dispatcher = services.dispatcher(hedge=True, inflight_batches=2)
    for _ in range(25):
        dispatcher.hedging.sent(1)
        dispatcher.hedging.took(1, 0.01)
    assert scores(await outcomes_of(dispatcher, 1)) == [0]
    assert [url for url, _, _ in services.sent] == [A, B]
    await turns()
    for replica in dispatcher.replicas.replicas:
        assert (replica.inflight_batches, replica.failures) == (0, 0)


async def test_replicas_come_and_go_while_batches_are_in_flight():
    gate = asyncio.Event()
    forgotten: list[str] = []

    async def held(url: str, numbers: list[int]) -> list[Outcome]:
        if url == A:
            await gate.wait()
        return await right(url, numbers)

    services = Services(held)
    dispatcher = services.dispatcher(up=[A], max_batch=1)
    dispatcher.on_forgotten = lambda replica: forgotten.append(replica.url)
    tickets = dispatcher.submit([item(n) for n in range(3)], timeout_s=5.0)
    await turns()
    (new,) = dispatcher.list_replicas([B, "http://c"])
    assert new.url == "http://c"
    dispatcher.probed(dispatcher.replicas.listed[0], True)
    assert scores(await answers(tickets[1:])) == [1, 2]
    assert not forgotten
    gate.set()
    assert scores(await answers(tickets)) == [0, 1, 2]
    await turns()
    assert forgotten == [A]
    assert [url for url, _, _ in services.sent] == [A, B, B]
