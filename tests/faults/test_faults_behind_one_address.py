"""F5 behind one address: HAProxy before two gateways, of which one goes in the middle of a step."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from processes import REPOSITORY, Server, Stand, until

from reward_api import RewardClient

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy"),
]


@contextmanager
def balanced(first: str, second: str) -> Iterator[str]:
    """The one address of two gateways."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    gateways = {"GATEWAY_A": first.removeprefix("http://"), "GATEWAY_B": second.removeprefix("http://")}
    # -db: in the foreground, without a master process.
    command = ["haproxy", "-db", "-q", "-f", str(REPOSITORY / "docker" / "haproxy.cfg")]
    with subprocess.Popen(command, env=os.environ | gateways | {"LISTEN": address}) as process:
        try:
            yield f"http://{address}"
        finally:
            process.kill()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_f5_a_gateway_goes_and_the_client_behind_one_address_loses_nothing(logs, ledger, ask, end):
    with Stand(logs, options={number: ["--option", "slow=4"] for number in range(2)}) as stand:
        other = Server(logs, "gateway-2", ["gateway", "--config", str(stand.config_file)], None)
        try:
            other.await_ready()
            with balanced(stand.url, other.url) as url:

                def ready() -> bool:
                    try:
                        return httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False).status_code == 200
                    except httpx.HTTPError:
                        return False

                await until(ready, within_s=30.0)
                async with RewardClient(url, timeout_s=110.0) as client:  # with as few attempts as it has by default
                    running = asyncio.gather(*(ask(client, ledger.items(12)) for _ in range(30)))
                    await until(lambda: len(ledger.answers) >= 60, within_s=60.0, step_s=0.01)
                    stand.gateway.signal(end)
                    assert not running.done()
                    await running
                async with httpx.AsyncClient(trust_env=False, timeout=10.0) as http:
                    asked = (await http.get(f"{other.url}/metrics")).text
        finally:
            other.end()
    assert ledger.check() == {"score": 360}
    assert 'reward_requests_total{code="200",reward="fake"}' in asked
