"""The systems under test: how each is started, how an image is sent to it and how its answer reads."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import yaml

from benchmarks.gateway.fake import SIDE, picture
from benchmarks.gateway.load import Answer, Request, post

REPOSITORY = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
START_S = 240.0


@dataclass(frozen=True, slots=True)
class Cost:
    """A reward as a system shall serve it: base + item milliseconds a batch, on so many replicas."""

    base_ms: float
    item_ms: float
    replicas: int

    def capacity(self, batch: int = 16) -> float:
        """Images a second with full batches: the scorer's own bound."""
        return self.replicas * batch * 1000 / (self.base_ms + self.item_ms * batch)


class System:
    """Processes that serve `rewards`; they run inside the `with` block."""

    name = ""
    takes_chunks = False
    """Whether one request may carry many images and ask for several rewards."""

    def __init__(self, rewards: Mapping[str, Cost], folder: Path, python: Path) -> None:
        self.rewards = dict(rewards)
        self.folder = folder
        self.python = python
        self.ports: dict[str, int] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        raise NotImplementedError

    def encode(self, reward: str, numbers: Sequence[int], *, deadline_s: float | None = None) -> Request:
        raise NotImplementedError

    def decode(self, answer: Answer) -> list[float | None]:
        """The scores of an answer, None where there is none."""
        raise NotImplementedError

    def launch(self, command: Sequence[str], **environment: str) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=os.environ
                    | {
                        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
                        "OMP_NUM_THREADS": "1",
                    }
                    | environment,
                    start_new_session=True,
                )
            )

    def __enter__(self) -> Self:
        try:
            self.start()
            for reward in self.rewards:
                self._await(reward)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _await(self, reward: str) -> None:
        """Until it scores: several times in a row, since some systems open their port before all workers are up."""
        deadline = time.monotonic() + START_S
        good = 0
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in self._processes):
                break
            try:
                with socket.create_connection(("127.0.0.1", self.ports[reward]), timeout=5.0) as connection:
                    connection.settimeout(10.0)
                    head, _, body = self.encode(reward, [7]).wire.partition(b"\r\n\r\n")
                    connection.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
                    parts = []
                    while part := connection.recv(2**16):
                        parts.append(part)
                good = good + 1 if b" 200 " in b"".join(parts)[:20] else 0
            except OSError:
                good = 0
            if good == 5:
                return
            time.sleep(0.05 if good else 0.5)
        tail = (self.folder / f"{self.name}.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.name} did not serve {reward}; its log ends:\n{tail}")

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its session: workers that outlived it
            process.wait()


class FlowGrpo(System):
    """This repository's gateway before its reward services; one request may carry a whole chunk."""

    name = "flow-grpo"
    takes_chunks = True

    def start(self) -> None:
        routes: dict[str, dict[str, object]] = {}
        for reward, cost in self.rewards.items():
            urls = []
            for _ in range(cost.replicas):
                port = free_port()
                options = {"name": reward, "base_ms": cost.base_ms, "item_ms": cost.item_ms}
                chosen = [word for key, value in options.items() for word in ("--option", f"{key}={value}")]
                self._serve(["benchmarks.gateway.fake:Fake", *chosen], port)
                urls.append(f"http://127.0.0.1:{port}")
            routes[reward] = {"replicas": urls}
        config = self.folder / "gateway.yaml"
        config.write_text(yaml.safe_dump({"rewards": routes}))
        port = free_port()
        self._serve(["gateway", "--config", str(config)], port)
        self.ports = dict.fromkeys(self.rewards, port)

    def _serve(self, arguments: list[str], port: int) -> None:
        self.launch([sys.executable, "-m", "flow_grpo", "serve", *arguments, "--port", str(port)])

    def encode(self, reward: str, numbers: Sequence[int], *, deadline_s: float | None = None) -> Request:
        rewards = reward.split(",")
        items = [
            {"image": {"shape": (SIDE, SIDE, 3), "data": picture(n).tobytes()}, "prompt": f"image {n}"} for n in numbers
        ]
        body = msgspec.msgpack.encode({"items": items, "rewards": rewards})
        headers = {"Content-Type": "application/msgpack"}
        if deadline_s is not None:
            headers["X-Deadline-Ms"] = str(int(deadline_s * 1000))
        return Request([n for n in numbers for _ in rewards], post("/v1/score", headers, body))

    def decode(self, answer: Answer) -> list[float | None]:
        document = msgspec.json.decode(answer.body)
        return [result.get("score") for item in document["items"] for result in item["results"].values()]


class LitServe(System):
    """One server a reward; two worker processes take from one queue."""

    name = "litserve"

    def start(self) -> None:
        for reward, cost in self.rewards.items():
            self.ports[reward] = free_port()
            self.launch(
                [str(self.python), str(PEERS / "litserve_server.py"), str(self.ports[reward]), str(cost.replicas)],
                BENCH_BASE_MS=str(cost.base_ms),
                BENCH_ITEM_MS=str(cost.item_ms),
            )

    def encode(self, reward: str, numbers: Sequence[int], *, deadline_s: float | None = None) -> Request:
        return multipart("/predict", "image", numbers)

    def decode(self, answer: Answer) -> list[float | None]:
        return [json.loads(answer.body)["score"] if answer.status == 200 else None]


class RayServe(System):
    """One application a reward behind Ray's proxy; raw bodies."""

    name = "ray[serve]"

    def start(self) -> None:
        port = free_port()
        self.ports = dict.fromkeys(self.rewards, port)
        arguments = [f"{name}={c.replicas}:{c.base_ms}:{c.item_ms}" for name, c in self.rewards.items()]
        self.launch([str(self.python), str(PEERS / "ray_server.py"), str(port), *arguments])

    def encode(self, reward: str, numbers: Sequence[int], *, deadline_s: float | None = None) -> Request:
        (number,) = numbers
        headers = {"Content-Type": "application/octet-stream"}
        return Request(numbers, post(f"/{reward}", headers, picture(number).tobytes()))

    def decode(self, answer: Answer) -> list[float | None]:
        return [json.loads(answer.body)["score"] if answer.status == 200 else None]


class BentoML(System):
    """One server a reward, as many workers as replicas; each worker batches for itself."""

    name = "bentoml"

    def start(self) -> None:
        for reward, cost in self.rewards.items():
            self.ports[reward] = free_port()
            command = [str(self.python.with_name("bentoml")), "serve", "bentoml_service:Scorer"]
            command += ["--working-dir", str(PEERS), "--host", "127.0.0.1", "--port", str(self.ports[reward])]
            self.launch(
                command,
                BENCH_BASE_MS=str(cost.base_ms),
                BENCH_ITEM_MS=str(cost.item_ms),
                BENCH_WORKERS=str(cost.replicas),
                BENTOML_DO_NOT_TRACK="true",
                BENTOML_HOME=str(self.folder / "bentoml"),
            )

    def encode(self, reward: str, numbers: Sequence[int], *, deadline_s: float | None = None) -> Request:
        return multipart("/score", "images", numbers)

    def decode(self, answer: Answer) -> list[float | None]:
        return [json.loads(answer.body)[0] if answer.status == 200 else None]


SYSTEMS: list[type[System]] = [FlowGrpo, LitServe, RayServe, BentoML]


def multipart(path: str, field: str, numbers: Sequence[int]) -> Request:
    """One image as a file of a form."""
    (number,) = numbers
    head = (
        f'--bench\r\nContent-Disposition: form-data; name="{field}"; filename="x.raw"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    body = head + picture(number).tobytes() + b"\r\n--bench--\r\n"
    return Request(numbers, post(path, {"Content-Type": "multipart/form-data; boundary=bench"}, body))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
