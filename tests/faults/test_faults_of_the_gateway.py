"""F5: the gateway is asked to stop, and later killed, in the middle of a step."""

import asyncio
import signal
import time

import httpx
import pytest
from processes import Stand, until

from reward_api import RewardClient
from reward_api.wire import MSGPACK, encode_request

pytestmark = pytest.mark.faults


async def test_f5_a_step_survives_a_gateway_that_stops_and_one_that_is_killed(logs, ledger, ask):
    with Stand(logs, options={number: ["--option", "slow=4"] for number in range(2)}) as stand:

        async def step() -> None:
            """Thirty requests of 12 items; the client goes on until each item has its score."""
            async with RewardClient(stand.url, timeout_s=110.0, attempts=200) as client:
                await asyncio.gather(*(ask(client, ledger.items(12)) for _ in range(30)))

        for number in (signal.SIGTERM, signal.SIGKILL):
            running = asyncio.create_task(step())
            before = len(ledger.answers)
            await until(lambda before=before: len(ledger.answers) >= before + 60, within_s=60.0, step_s=0.01)
            stand.gateway.signal(number)
            assert not running.done()
            await asyncio.to_thread(stand.gateway.restart)
            await running
    assert ledger.check() == {"score": 2 * 360}


async def test_f5_sigterm_finishes_what_is_in_flight_and_refuses_what_comes(logs, ledger, ask):
    with Stand(logs, replicas=1, options={0: ["--option", "slow=60"]}, top={"drain_notice_s": 2.0}) as stand:
        async with (
            RewardClient(stand.url, timeout_s=60.0, attempts=1) as client,
            httpx.AsyncClient(base_url=stand.url, trust_env=False, timeout=30.0) as http,
        ):
            assert (await http.get("/readyz")).status_code == 200  # a connection that stays open
            in_flight = asyncio.create_task(ask(client, ledger.items(16)))
            await asyncio.sleep(0.4)
            stand.gateway.signal(signal.SIGTERM)
            started = time.monotonic()
            await asyncio.sleep(0.3)
            body = encode_request(ledger.items(1))
            refused = await http.post("/v1/score", content=body, headers={"Content-Type": MSGPACK})
            await in_flight
            status = await asyncio.to_thread(stand.gateway.process.wait, 30)
        assert time.monotonic() - started < 10
    assert status == -signal.SIGTERM
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["connection"] == "close"
    assert ledger.check(excused=[16]) == {"score": 16}


async def test_f5_what_does_not_finish_in_time_is_told_item_by_item(logs, ledger, ask):
    with Stand(logs, replicas=1, options={0: ["--option", "slow=400"]}, max_batch=2, top={"drain_s": 1.0}) as stand:
        async with RewardClient(stand.url, timeout_s=60.0, attempts=1) as client:
            in_flight = asyncio.create_task(ask(client, ledger.items(6)))
            await asyncio.sleep(0.5)
            stand.gateway.signal(signal.SIGTERM)
            started = time.monotonic()
            await in_flight
            await asyncio.to_thread(stand.gateway.process.wait, 30)
        assert time.monotonic() - started < 8
    assert ledger.check(errors={"no_replica"})["no_replica"] >= 2
