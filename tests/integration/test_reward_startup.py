"""`flow-grpo serve` at its start: the port answers while a scorer loads, and what cannot load ends in a sentence."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest

import flow_grpo
from reward_api import Item, RewardClient, Score

pytestmark = pytest.mark.integration

DEADLINE_S = 120.0

MY_MODULE = """
import time
from pathlib import Path


class MyScorer:
    name = "mine"
    version = "1"

    def score(self, batch):
        return [float(item.image.max()) for item in batch]


class Slow(MyScorer):
    def __init__(self, gate: str):
        self.gate = Path(gate)

    def load(self):
        while not self.gate.exists():
            time.sleep(0.05)


class Broken(MyScorer):
    def load(self):
        raise ValueError("the weights are nowhere")
"""

Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts `flow-grpo serve ARGUMENTS` beside my_module.py, with an empty hub cache and the settings given."""
    (tmp_path / "my_module.py").write_text(MY_MODULE)
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
        repository = str(Path(flow_grpo.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": repository, "HF_HOME": str(tmp_path / "hub")} | settings
        command = [sys.executable, "-m", "flow_grpo", "serve", *arguments, "--port", "0"]
        command += ["--ready-file", str(tmp_path / "address")]
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=10)


def address(process: subprocess.Popen[str], folder: Path) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while not (folder / "address").exists():
        assert process.poll() is None, "the service ended at its start"
        assert time.monotonic() < deadline, "the service wrote no address"
        time.sleep(0.02)
    return (folder / "address").read_text().strip()


def readiness(url: str, status: int) -> str:
    """What /readyz says once its status is `status`."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        answer = httpx.get(f"{url}/readyz", trust_env=False, timeout=10)
        if answer.status_code == status:
            return answer.text
        time.sleep(0.05)
    raise AssertionError(f"/readyz never answered {status}")


def last_words(process: subprocess.Popen[str]) -> str:
    """The last line of a process that must fail."""
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


async def test_a_scorer_of_ones_own(serve: Serve, tmp_path: Path) -> None:
    url = address(serve("my_module:MyScorer"), tmp_path)
    readiness(url, 200)
    images = [np.full((4, 4, 3), value, np.uint8) for value in (7, 9)]
    async with RewardClient(url, timeout_s=30) as client:
        outcomes = await client.score([Item(image, "anything") for image in images])
    assert outcomes == [{"mine": Score(7.0)}, {"mine": Score(9.0)}]


def test_the_port_answers_while_the_scorer_loads(serve: Serve, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    url = address(serve("my_module:Slow", "--option", f"gate={gate}"), tmp_path)
    assert "reward mine: the scorer is loading" in readiness(url, 503)
    assert httpx.get(f"{url}/livez", trust_env=False, timeout=10).status_code == 200
    gate.touch()
    assert readiness(url, 200) == "ready\n"


def test_a_scorer_that_cannot_load_ends_the_process_with_a_sentence(serve: Serve) -> None:
    words = last_words(serve("my_module:Broken"))
    assert words == "flow-grpo: serve my_module:Broken: failed while loading: the weights are nowhere"


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub on loopback where every repository is gated."""

    class Gated(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to this model is restricted.")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("target", [("pickscore",), ("geneval", "--option", "detector=mask2former")])
def test_a_gated_model_without_a_token(serve: Serve, hub: str, target: tuple[str, ...]) -> None:
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_TOKEN": "", "NO_PROXY": "127.0.0.1"}
    words = last_words(serve(*target, "--option", "model=somebody/gated", **online))
    assert words.startswith(f"flow-grpo: serve {target[0]}: failed while loading: somebody/gated is gated")
    assert f"accept its terms at {hub}/somebody/gated and set HF_TOKEN" in words


def test_a_hub_that_is_out_of_reach(serve: Serve) -> None:
    nowhere = "http://127.0.0.1:9"
    unreachable = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": nowhere, "NO_PROXY": "127.0.0.1"}
    words = last_words(serve("pickscore", "--option", "model=yuvalkirstain/PickScore_v1", **unreachable))
    assert "yuvalkirstain/PickScore_v1 is neither a directory here nor, with config.json, in the hub's cache" in words
    assert f"{nowhere} cannot be reached: download it where there is a network and give its directory" in words
