"""Reward services and a gateway as processes that a test may kill, stop and start again on the same port."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx
import yaml

import flow_grpo
from flow_grpo.runner import PARENT_VARIABLE

START_S = 90.0
REPOSITORY = Path(flow_grpo.__file__).parents[1]


async def until(condition: Callable[[], bool], within_s: float, step_s: float = 0.05) -> float:
    """Seconds until `condition()`, which runs in a thread, holds."""
    started = time.monotonic()
    while time.monotonic() - started < within_s:
        if await asyncio.to_thread(condition):
            return time.monotonic() - started
        await asyncio.sleep(step_s)
    raise AssertionError(f"not within {within_s:g} s")


class Server:
    """One process of `flow-grpo serve`, or of `short_limits` where `limits` are given."""

    def __init__(self, folder: Path, name: str, arguments: list[str], limits: Mapping[str, float] | None) -> None:
        self.name = name
        self.url = ""
        self._arguments = arguments
        self._limits = dict(limits or {})
        self._ready_file = folder / f"{name}.ready"
        self._log = folder / f"{name}.log"
        self._supervisor: threading.Thread | None = None
        self._wanted = True
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Starts the process, on the port it had before if it had one."""
        self._ready_file.unlink(missing_ok=True)
        module = "short_limits" if self._limits else "flow_grpo"
        port = urlsplit(self.url).port or 0
        command = [sys.executable, "-m", module, "serve", *self._arguments, "--port", str(port)]
        here = [str(Path(__file__).parent), str(REPOSITORY)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(here), PARENT_VARIABLE: str(os.getpid())}
        environment |= {f"TEST_{key}": str(value) for key, value in self._limits.items()}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(self._ready_file)], stdout=log, stderr=log, env=environment
            )
        self.starts += 1

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"{self.name} ended: {self.log()}"
            if self._ready_file.exists():
                self.url = self._ready_file.read_text().strip()
                try:
                    if httpx.get(f"{self.url}/readyz", timeout=2.0, trust_env=False).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
            time.sleep(0.05)
        raise AssertionError(f"{self.name} was not ready within {START_S:g} s: {self.log()}")

    def restart(self) -> None:
        self.process.wait(timeout=30)
        self.start()
        self.await_ready()

    def supervise(self) -> None:
        """Starts the process again whenever it ends, as an orchestrator does."""
        self._supervisor = threading.Thread(target=self._keep_alive, daemon=True)
        self._supervisor.start()

    def _keep_alive(self) -> None:
        while self._wanted:
            if self.process.poll() is not None:
                self.start()
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        self._wanted = False
        if self._supervisor is not None:
            self._supervisor.join(timeout=10)
        self.process.kill()
        self.process.wait(timeout=10)


class Stand:
    """A gateway before `replicas` fake services. All processes end with the block."""

    def __init__(
        self, folder: Path, *, replicas: int = 2, options: Mapping[int, list[str]] | None = None, **settings: object
    ) -> None:
        self.folder = folder
        self.options = options or {}
        self.count = replicas
        self.limits: Mapping[str, float] | None = settings.pop("limits", None)  # type: ignore[assignment]
        self.top: dict[str, object] = settings.pop("top", {})  # type: ignore[assignment]
        self.route = {"no_replica_grace_s": 30.0} | settings
        self.replicas: list[Server] = []

    def __enter__(self) -> Self:
        try:
            for number in range(self.count):
                arguments = ["fault_scorers:Fake", *self.options.get(number, [])]
                self.replicas.append(Server(self.folder, f"fake-{number}", arguments, self.limits))
            for replica in self.replicas:
                replica.await_ready()
            self.config_file = self.folder / "gateway.yaml"
            self.write_config([replica.url for replica in self.replicas])
            arguments = ["gateway", "--config", str(self.config_file)]
            self.gateway = Server(self.folder, "gateway", arguments, self.limits)
            self.gateway.await_ready()
        except BaseException:
            self.end()
            raise
        self.url = self.gateway.url
        return self

    def write_config(self, urls: list[str]) -> None:
        document = {"rewards": {"fake": {"replicas": urls, **self.route}}, **self.top}
        self.config_file.write_text(yaml.safe_dump(document))

    def metric(self, line: str) -> float:
        """The value of one series."""
        text = httpx.get(f"{self.url}/metrics", timeout=10.0, trust_env=False).text
        found = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line)]
        assert len(found) == 1, f"{line} is there {len(found)} times"
        return float(found[0])

    def up(self, replica: Server) -> float:
        return self.metric(f'reward_replica_up{{replica="{replica.url}"}}')

    def up_count(self) -> int:
        """How many replicas the gateway counts as up."""
        ready = httpx.get(f"{self.url}/readyz", timeout=10.0, trust_env=False).json()
        return int(ready["replicas_up"]["fake"])

    def end(self) -> None:
        for server in [*self.replicas, *([self.gateway] if hasattr(self, "gateway") else [])]:
            server.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
