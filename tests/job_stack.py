"""A service, a gateway with jobs and workers as processes, and a broker that may be a real Redis."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import yaml
from waiting import eventually

import flow_grpo
from reward_api import Item
from reward_api.wire import MSGPACK, encode_request

START_S = 120.0  # a busy machine takes long to start a Python process
END_S = 180.0
REPOSITORY = Path(flow_grpo.__file__).parents[1]

SCORER = """
import os, time
from pathlib import Path

class Slow:
    name, version = "slow", "1"

    def score(self, batch):
        numbers = [int(item.image[0, 0, 0]) + 256 * int(item.image[0, 0, 1]) for item in batch]
        with Path(os.environ["SCORED"]).open("a") as ledger:
            ledger.write("".join(f"{number}\\n" for number in numbers))
        time.sleep(float(os.environ["SCORE_SECONDS"]) * len(batch))
        return numbers
"""


def item(number: int) -> Item:
    """An image that carries its number, which is its score."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0] = number % 256, number // 256, 0
    return Item(pixels, f"image {number}", rewards=("slow",))


class JobStack:
    """Use as a context manager: everything started ends with it."""

    def __init__(self, folder: Path, *, score_s: float = 0.0, **jobs: Any) -> None:
        self.folder = folder
        self.jobs = {"folder": str(folder / "jobs"), "sweep_s": 0.1, "worker_processes": 1} | jobs
        self.scored = folder / "scored"
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]),
            "SCORED": str(self.scored),
            "SCORE_SECONDS": str(score_s),
        }
        self.port = free_port()  # the gateway's, also after a restart
        self.processes: list[subprocess.Popen[bytes]] = []
        self.gateway: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=90)

    def __enter__(self) -> "JobStack":
        (self.folder / "slow_scorer.py").write_text(SCORER)
        try:
            service = self.serve("slow_scorer:Slow", "--port", "0")
            self.config = self.folder / "gateway.yaml"
            settings = {
                "rewards": {"slow": {"replicas": [service], "max_batch": 4, "inflight_batches": 1}},
                "jobs": self.jobs | {"gateway": f"http://127.0.0.1:{self.port}"},
            }
            self.config.write_text(yaml.safe_dump(settings))
            self.start_gateway()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.http.close()
        for process in self.processes:
            kill_group(process)

    def serve(self, target: str, *arguments: str) -> str:
        """Starts `flow-grpo serve TARGET` and returns what its ready-file says."""
        number = len(self.processes)
        ready = self.folder / f"{number}.ready"
        command = [sys.executable, "-m", "flow_grpo", "serve", target, *arguments, "--ready-file", str(ready)]
        with (self.folder / f"{number}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        self.processes.append(process)

        def started() -> str:
            if process.poll() is not None:
                pytest.fail(f"{target} ended: {(self.folder / f'{number}.log').read_text()[-2000:]}")
            return ready.read_text().strip() if ready.exists() else ""

        return str(eventually(started, within_s=START_S, what=f"{target} is ready"))

    def start_gateway(self) -> None:
        self.serve("gateway", "--config", str(self.config), "--port", str(self.port))
        self.gateway = self.processes[-1]
        eventually(lambda: self.http.get("/readyz").status_code == 200, within_s=START_S, what="the gateway is ready")

    def start_worker(self) -> subprocess.Popen[bytes]:
        self.serve("jobs-worker", "--config", str(self.config))
        return self.processes[-1]

    def submit(self, items: Sequence[Item], **headers: str) -> str:
        """The id of a new job."""
        answer = self.http.post("/v1/jobs", content=encode_request(items), headers={"Content-Type": MSGPACK} | headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def look(self, job_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/jobs/{job_id}").json())

    def finish(self, job_id: str, within_s: float = END_S) -> dict[str, Any]:
        """The job at its end."""

        def ended() -> dict[str, Any] | None:
            with contextlib.suppress(httpx.TransportError):  # the gateway may be starting again
                job: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}", params={"wait": 5}).json()
                return job if job["state"] in {"done", "cancelled"} else None
            return None

        return dict(eventually(ended, within_s=within_s, what=f"job {job_id} ends"))

    def results(self, job_id: str) -> list[dict[str, Any]]:
        text = self.http.get(f"/v1/jobs/{job_id}/results").text
        return [json.loads(line) for line in text.splitlines()]

    def times_scored(self) -> list[int]:
        """The numbers of the items the service was given, in order, each as often as it was given."""
        return [int(line) for line in self.scored.read_text().split()] if self.scored.exists() else []

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


def right_results(numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The result lines of a job of these items, done."""
    return [
        {"index": index, "results": {"slow": {"score": float(number), "details": {}}}}
        for index, number in enumerate(numbers)
    ]


class RedisServer:
    """A redis-server of one's own, which can be killed and started again on the same files."""

    def __init__(self, folder: Path, *, appendonly: bool = True) -> None:
        self.folder = folder
        self.appendonly = appendonly
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--appendonly", "yes" if self.appendonly else "no", "--appendfsync", "always", "--save", ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self.answers, within_s=START_S, what="redis-server answers")

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
            peer.sendall(b"PING\r\n")
            return peer.recv(16).startswith(b"+PONG")
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=10)


@contextlib.contextmanager
def redis_server(folder: Path, *, appendonly: bool = True) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    folder.mkdir(exist_ok=True)
    server = RedisServer(folder, appendonly=appendonly)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return list(psutil.Process(process.pid).children())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
