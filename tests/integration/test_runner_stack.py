"""A stack of real processes: two replicas of a small scorer and the gateway before them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

import flow_grpo
from flow_grpo.runner import LocalStack, StackError
from reward_api import Item, RewardClient, Score

pytestmark = pytest.mark.integration

SCORERS = """
import time

class Slow:
    name, version = "slow", "1"
    def score(self, batch):
        time.sleep(0.02 + 0.002 * len(batch))
        return [int(item.image[0, 0, 0]) + 256 * int(item.image[0, 0, 1]) for item in batch]

class Broken:
    name, version = "broken", "1"
    def __init__(self):
        raise ValueError("the weights are nowhere")
"""

PARENT = """
import sys, time
from pathlib import Path
from flow_grpo.runner import LocalStack
with LocalStack({"stack_scorers:Slow": {}}, log_dir=Path(sys.argv[1])) as stack:
    print(*[one.process.pid for one in (stack.gateway, *stack.services)], flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def scorers_to_import(tmp_path, monkeypatch):
    (tmp_path / "stack_scorers.py").write_text(SCORERS)
    repository = Path(flow_grpo.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(repository)]))


def all_gone(pids: list[int], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False


def item(number: int) -> Item:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0] = number % 256, number // 256, 0
    return Item(pixels, f"image {number}", rewards=("slow",))


async def score_while_a_replica_dies(stack: LocalStack, count: int) -> list[object]:
    """Requests of 10 items each; as soon as the first is answered the first replica is killed."""
    assert stack.gateway is not None
    async with RewardClient(stack.gateway_url, timeout_s=30.0, attempts=1) as client:  # the gateway's retries alone
        calls = [asyncio.create_task(client.score([item(n) for n in range(s, s + 10)])) for s in range(0, count, 10)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        stack.services[0].process.send_signal(signal.SIGKILL)
        assert sum(call.done() for call in calls) < len(calls)
        answers = [outcome for call in calls for outcome in await call]
    return [outcomes["slow"] for outcomes in answers]


async def kill_one_and_score(stack: LocalStack) -> None:
    outcomes = await score_while_a_replica_dies(stack, 400)
    assert outcomes == [Score(float(number)) for number in range(400)]
    gauge = f'reward_replica_up{{replica="{stack.services[0].url}"}} 0.0'
    async with httpx.AsyncClient(base_url=stack.gateway_url, trust_env=False) as http:
        for _ in range(10):
            if gauge in (await http.get("/metrics")).text:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the dead replica still counts as up after a second")
        ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"replicas_up": {"slow": 1}})


async def test_a_killed_replica_loses_nothing_and_an_exception_leaves_nothing_behind(tmp_path):
    stack = LocalStack({"stack_scorers:Slow": {}}, {"stack_scorers:Slow": 2}, tmp_path / "logs")
    pids: list[int] = []

    async def use_it_and_fail() -> None:
        with stack:
            assert stack.gateway is not None
            pids.extend(service.process.pid for service in (stack.gateway, *stack.services))
            await kill_one_and_score(stack)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use_it_and_fail()
    assert len(pids) == 3
    assert all_gone(pids, within_s=0.5)
    with pytest.raises(RuntimeError, match="not running"):
        _ = stack.gateway_url


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_parent_leaves_nothing_behind(tmp_path, number):
    command = [sys.executable, "-c", PARENT, str(tmp_path / "logs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pids = [int(word) for word in parent.stdout.readline().split()]
            assert len(pids) == 2
            parent.send_signal(number)
            parent.communicate(timeout=20)
            assert parent.returncode != 0
            assert all_gone(pids, within_s=5.0)
        finally:
            parent.kill()


def test_a_service_that_cannot_start_is_named_with_its_last_words(tmp_path):
    with (
        pytest.raises(StackError, match=r"stack_scorers\.Broken-0 ended with status 1") as caught,
        LocalStack({"stack_scorers:Broken": {}}, log_dir=tmp_path / "logs"),
    ):
        pass
    assert "the weights are nowhere" in str(caught.value)


@pytest.mark.parametrize(("rewards", "replicas"), [({}, {}), ({"ocr": {}}, {"geneval": 2}), ({"ocr": {}}, {"ocr": 0})])
def test_replicas_must_belong_to_rewards(rewards, replicas):
    with pytest.raises(ValueError, match="do not fit together"):
        LocalStack(rewards, replicas)
