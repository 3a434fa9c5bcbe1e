"""`flow-grpo serve REWARD --workers N`: real processes behind one port, killed and stopped."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

import flow_grpo
from reward_api import Item, RewardClient, Score

pytestmark = pytest.mark.integration

SCORERS = """
import os, time
from pathlib import Path

class Who:
    name, version = "who", "1"

    def __init__(self, gate: str = "", fault: str = ""):
        self.gate = Path(gate) if gate else None
        self.fault = fault

    def warm_up(self):
        if self.fault:
            raise OSError(self.fault)
        # The first worker passes; the others wait until the gate is opened.
        if self.gate is None:
            return
        try:
            self.gate.with_suffix(".first").touch(exist_ok=False)
        except FileExistsError:
            while not self.gate.exists():
                time.sleep(0.02)

    def score(self, batch):
        return [os.getpid()] * len(batch)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "worker_scorers.py").write_text(SCORERS)
    repository = Path(flow_grpo.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(repository)])}
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, ready: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flow_grpo", "serve", "worker_scorers:Who", "--port", "0"]
        command += [*arguments, "--ready-file", str(ready or tmp_path / "address")]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        for child in workers_of(process):
            child.kill()
        process.kill()
        process.communicate(timeout=10)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def until(true: Callable[[], object], *, within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def url_in(ready: Path) -> str:
    until(ready.exists)
    return ready.read_text().strip()


def readiness(url: str) -> httpx.Response:
    return httpx.get(f"{url}/readyz", trust_env=False, timeout=10)


def items(count: int) -> list[Item]:
    return [Item(np.zeros((8, 8, 3), np.uint8), "an image") for _ in range(count)]


async def who_answers(url: str, requests: int) -> list[int]:
    """The process ids that a sequence of requests meets."""
    async with RewardClient(url, timeout_s=60) as client:
        answers = [await client.score(items(1)) for _ in range(requests)]
    scores = [outcomes["who"] for (outcomes,) in answers]
    assert all(isinstance(score, Score) for score in scores)
    return [int(score.score) for score in scores if isinstance(score, Score)]


async def test_a_killed_worker_is_replaced_while_requests_go_on(start: Start, tmp_path: Path) -> None:
    parent = start("--workers", "2")
    url = url_in(tmp_path / "address")
    until(lambda: readiness(url).status_code == 200)
    first, second = (worker.pid for worker in workers_of(parent))
    assert await who_answers(url, 6) in ([first, second] * 3, [second, first] * 3)

    async with RewardClient(url, timeout_s=60) as client:
        calls = [asyncio.create_task(client.score(items(4))) for _ in range(40)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        os.kill(first, signal.SIGKILL)
        answers = [outcomes["who"] for call in calls for outcomes in await call]
    assert [type(answer) for answer in answers] == [Score] * 160
    assert set(await who_answers(url, 4)) <= {pid.pid for pid in workers_of(parent)} - {first}

    answering: set[int] = set()
    deadline = time.monotonic() + 90
    while len(answering) < 2:
        assert time.monotonic() < deadline, "no new worker answers"
        answering = set(await who_answers(url, 4))
    assert first not in answering
    assert second in answering

    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        metrics = {(await http.get("/metrics")).text for _ in range(2)}
    assert len(metrics) == 1, "the two workers tell different figures"
    (counted,) = (line for line in metrics.pop().splitlines() if line.startswith('reward_items_total{outcome="ok"'))
    assert float(counted.split()[-1]) >= 6 + 160 + 4 + 4  # all that was answered, also by the killed one


def test_the_service_is_ready_when_all_workers_are(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    parent = start("--workers", "3", "--option", f"gate={gate}")
    url = url_in(tmp_path / "address")
    until(lambda: len(workers_of(parent)) == 3)  # the first is warm: the others start then
    seen = [readiness(url) for _ in range(4)]
    assert [response.status_code for response in seen] == [503] * 4
    assert "other workers are warming up" in seen[-1].json()["detail"]
    assert seen[0].headers["connection"] == "close"
    gate.touch()
    until(lambda: readiness(url).status_code == 200)
    assert [readiness(url).status_code for _ in range(6)] == [200] * 6
    metrics = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text
    ups = [line.split()[-1] for line in metrics.splitlines() if line.startswith("reward_replica_up{")]
    assert ups == ["1.0"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    parent = start("--workers", "2")
    url = url_in(tmp_path / "address")
    until(lambda: readiness(url).status_code == 200)
    workers = workers_of(parent)
    assert len(workers) == 2
    sent = time.monotonic()
    parent.send_signal(number)
    _, said = parent.communicate(timeout=20)
    _, alive = psutil.wait_procs(workers, timeout=max(0.0, sent + 10 - time.monotonic()))
    assert not alive
    assert parent.returncode == (-number if number == signal.SIGKILL else 0)
    assert "Traceback" not in said


@pytest.mark.parametrize(("option", "reason"), [("gates=x", "has no option gates"), ("fault=no weights", "no weights")])
def test_a_worker_that_cannot_start_ends_the_service_and_says_why_once(start: Start, option: str, reason: str) -> None:
    parent = start("--workers", "3", "--option", option)
    _, said = parent.communicate(timeout=90)
    assert parent.returncode == 1
    assert said.count(reason) == 1
