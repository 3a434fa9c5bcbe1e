"""F1, F3, F4: replicas that die, stall or stop in the middle of a batch."""

import asyncio
import os
import signal
import time

import httpx
import pytest
from fault_scorers import POISON, STALL_S
from ledger import number_of
from processes import Stand, until

from reward_api import RewardClient

pytestmark = pytest.mark.faults


def deaths(stand: Stand) -> int:
    return sum(replica.starts - 1 for replica in stand.replicas)


async def test_f1_one_poison_item_loses_its_own_score_and_no_other(logs, ledger, ask):
    with Stand(logs, replicas=3) as stand:
        for replica in stand.replicas:
            replica.supervise()
        requests = [ledger.items(10) for _ in range(20)]
        (poison,) = ledger.items(1, prompt=POISON)
        requests[7].insert(4, poison)
        async with RewardClient(stand.url, timeout_s=110.0, attempts=1) as client:
            await asyncio.gather(*(ask(client, items) for items in requests))
        await until(lambda: deaths(stand) >= 4, within_s=10.0)
    assert ledger.check(errors={"scorer_failed"}) == {"score": 200, "scorer_failed": 1}
    assert ledger.answers[number_of(poison)][0].code == "scorer_failed"
    assert deaths(stand) == 4  # twice in its batch, twice alone


async def test_f3_a_replica_killed_in_the_middle_of_a_batch_loses_nothing(logs, ledger, ask):
    with Stand(logs) as stand:
        readiness: list[int] = []

        async def watch(http: httpx.AsyncClient) -> None:
            while True:
                readiness.append((await http.get("/readyz")).status_code)
                await asyncio.sleep(0.05)

        async with (
            RewardClient(stand.url, timeout_s=60.0, attempts=1) as client,
            httpx.AsyncClient(base_url=stand.url, trust_env=False, timeout=10.0) as http,
        ):
            watching = asyncio.create_task(watch(http))
            calls = [asyncio.create_task(ask(client, ledger.items(20))) for _ in range(30)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            stand.replicas[0].signal(signal.SIGKILL)
            assert not all(call.done() for call in calls)
            noticed_s = await until(lambda: stand.up(stand.replicas[0]) == 0, within_s=5.0, step_s=0.01)
            await asyncio.gather(*calls)
            watching.cancel()
        assert noticed_s <= 1.0
        assert set(readiness) == {200}
    assert ledger.check() == {"score": 600}


async def test_f4_a_stopped_replica_holds_nothing_back_and_comes_back(logs, ledger, ask):
    quick = {"probe_interval_s": 0.3, "probe_timeout_s": 0.5, "probe_misses": 2}
    with Stand(logs, top=quick, batch_timeout_s=100.0) as stand:
        stopped = stand.replicas[0]
        async with RewardClient(stand.url, timeout_s=90.0, attempts=1) as client:
            calls = [asyncio.create_task(ask(client, ledger.items(20))) for _ in range(30)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            stopped.signal(signal.SIGSTOP)
            assert not all(call.done() for call in calls)
            try:
                started = time.monotonic()
                await asyncio.gather(*calls)
                assert time.monotonic() - started < 30  # far below batch_timeout_s
                await until(lambda: stand.up(stopped) == 0, within_s=20.0)
            finally:
                stopped.signal(signal.SIGCONT)
            await until(lambda: stand.up(stopped) == 1, within_s=30.0)
            await ask(client, ledger.items(100))  # late answers of the batches it slept on disturb nobody
    assert ledger.check() == {"score": 700}


async def test_f4_a_slow_replica_gets_less(logs, ledger, ask):
    with Stand(logs, options={0: ["--option", "slow=30"]}, inflight_batches=1) as stand:
        async with RewardClient(stand.url, timeout_s=60.0, attempts=1) as client:
            await asyncio.gather(*(ask(client, ledger.items(8)) for _ in range(60)))
        slow, fast = (stand.metric(f'reward_batch_seconds_count{{replica="{one.url}"}}') for one in stand.replicas)
    assert ledger.check() == {"score": 60 * 8}
    assert slow < fast / 2


async def test_f4_hedging_saves_a_batch_from_a_replica_that_stalls(logs, ledger, ask):
    full = 16
    stalls = {0: ["--option", "stall_at=25"]}
    with Stand(logs, options=stalls, inflight_batches=1, max_batch=full, hedge=True, hedge_extra=0.5) as stand:
        async with RewardClient(stand.url, timeout_s=60.0, attempts=1) as client:
            longest_s = 0.0
            for _ in range(40):
                started = time.monotonic()
                await asyncio.gather(*(ask(client, ledger.items(full)) for _ in stand.replicas))
                longest_s = max(longest_s, time.monotonic() - started)
        assert stand.metric('reward_retries_total{reason="hedge"}') >= 1
    assert ledger.check() == {"score": 40 * 2 * full}
    assert longest_s < STALL_S / 2


async def test_replicas_are_changed_while_the_gateway_works(logs, ledger, ask):
    top = {"reload_interval_s": 0.2}
    with Stand(logs, top=top) as stand:
        first, second = stand.replicas
        stand.write_config([first.url])
        await until(lambda: stand.up_count() == 1, within_s=20.0)
        async with (
            RewardClient(stand.url, timeout_s=60.0, attempts=1) as client,
            httpx.AsyncClient(base_url=stand.url, trust_env=False, timeout=30.0) as http,
        ):
            calls = [asyncio.create_task(ask(client, ledger.items(20))) for _ in range(30)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            change = {"reward": "fake", "add": [second.url], "remove": [first.url]}
            answer = await http.post("/v1/admin/replicas", json=change)
            assert answer.status_code == 200, answer.text
            assert answer.json()["rewards"]["fake"]["endpoints"] == [second.url]
            await until(lambda: stand.up_count() == 1, within_s=20.0)
            first.signal(signal.SIGTERM)
            await asyncio.gather(*calls)
            stand.config_file.write_text("rewards: [")  # a broken file changes nothing
            os.kill(stand.gateway.process.pid, signal.SIGHUP)
            await ask(client, ledger.items(20))
    assert ledger.check() == {"score": 620}
