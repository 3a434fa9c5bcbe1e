"""A reward service as a process: ready-file, keep-alive, drain on SIGTERM."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from reward_api import Item, RewardClient, RewardUnavailable, Score

pytestmark = pytest.mark.integration

PROGRAM = """
import sys, time
from pathlib import Path
from reward_services.service import create_app, serve

class Slow:
    name = "slow"
    version = "1"
    batch_limit = 4

    def score(self, batch):
        time.sleep(0.5 if batch[0].prompt == "slow" else 0.0)
        return [float(item.image.mean()) for item in batch]

serve(create_app(Slow()), "127.0.0.1", 0, Path(sys.argv[1]))
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    ready = tmp_path / "address"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(ready)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, "the service died at its start"
            assert time.monotonic() < deadline, "the service wrote no address"
            time.sleep(0.02)
        yield process, ready.read_text().strip()
    finally:
        process.kill()
        process.wait(timeout=10)


def items(count: int, prompt: str = "quick") -> list[Item]:
    return [Item(np.full((64, 64, 3), value, np.uint8), prompt) for value in range(count)]


async def test_scores_over_a_real_socket(service: tuple[subprocess.Popen[bytes], str]) -> None:
    _, url = service
    async with RewardClient(url, timeout_s=20) as client:
        outcomes = await client.score(items(200))
        (info,) = await client.rewards()
    assert outcomes == [{"slow": Score(float(value))} for value in range(200)]
    assert info.name == "slow"


async def test_an_idle_connection_stays_open_past_the_frameworks_five_seconds(
    service: tuple[subprocess.Popen[bytes], str],
) -> None:
    _, url = service
    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(keepalive_expiry=60)) as client:
        before = await client_address(client)
        await asyncio.sleep(6)
        assert await client_address(client) == before


async def client_address(client: httpx.AsyncClient) -> tuple[str, int]:
    """Which connection the client used for a request: its own end of it."""
    async with client.stream("GET", "/livez") as response:
        address = response.extensions["network_stream"].get_extra_info("client_addr")
        await response.aread()
    return address


async def test_sigterm_finishes_what_is_in_flight_and_stops(service: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = service
    async with RewardClient(url, timeout_s=20, attempts=1) as client:
        await client.score(items(1))
        in_flight = asyncio.create_task(client.score(items(1, "slow")))
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert await in_flight == [{"slow": Score(0.0)}]
        await asyncio.to_thread(process.wait, 10)
        assert time.monotonic() - started < 5
        with pytest.raises(RewardUnavailable, match=url):
            await client.score(items(1))


def test_curl_scores_a_file(service: tuple[subprocess.Popen[bytes], str], tmp_path: Path) -> None:
    from PIL import Image

    _, url = service
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "x.png")
    command = ["curl", "-sS", "-m", "10", "-F", f"image=@{tmp_path / 'x.png'}", "-F", "prompt=a cat"]
    try:
        answer = subprocess.run([*command, f"{url}/v1/score"], capture_output=True, check=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("curl is not installed")
    assert answer.stdout == b'{"items":[{"results":{"slow":{"score":7.0,"details":{}}}}]}'
