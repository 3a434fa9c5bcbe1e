"""Reward services and a gateway as processes of this machine, for as long as a `with` block lasts."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import httpx
import yaml

from reward_api.client import TOKEN_VARIABLE
from reward_api.wire import decode_rewards

PARENT_VARIABLE = "FLOW_GRPO_PARENT"
STOP_S = 10.0  # servers finish what is in flight within 5 s
_LOG_LINES = 20
_LOOK_EVERY_S = 0.1
_PR_SET_PDEATHSIG = 1


class StackError(RuntimeError):
    """A process ended early or was not ready in time; the message holds the last lines of its log."""


@dataclass(slots=True, eq=False)
class Service:
    """One process of the stack; `url` is known once it listens."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_file: Path
    url: str = ""

    def last_words(self) -> str:
        """The end of its log."""
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, maxlen=_LOG_LINES)).strip() or "(empty)"


class LocalStack:
    """Starts the services of `rewards` and a gateway before them, on free loopback ports.

    `rewards` maps what `flow-grpo serve` takes (geneval, my_module:MyScorer) to its options, `replicas` the same
    names to how many processes there shall be (default 1). Logs, ready-files and the gateway's configuration go to
    `log_dir`. `gateway_url` answers inside the `with` block, all replicas up. All processes are ended with the
    block: after its end, an exception, SIGINT or SIGTERM; on Linux also when this process is killed.

    Enter it from a thread that outlives the block: the kernel ends the children with the thread that started them.
    Raises StackError.
    """

    def __init__(
        self,
        rewards: Mapping[str, Mapping[str, str]],
        replicas: Mapping[str, int] | None = None,
        log_dir: Path = Path("runs/logs"),
        *,
        start_timeout_s: float = 180.0,
    ) -> None:
        self.rewards = dict(rewards)
        self.replicas = dict(replicas or {})
        self.log_dir = Path(log_dir)
        self.start_timeout_s = start_timeout_s
        self.services: list[Service] = []
        self.gateway: Service | None = None
        self._former_handler: Any = None
        unknown = self.replicas.keys() - self.rewards.keys()
        if unknown or not self.rewards or any(count < 1 for count in self.replicas.values()):
            raise ValueError(f"rewards {sorted(self.rewards)} and replicas {self.replicas} do not fit together")

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers. Raises RuntimeError outside the `with` block."""
        if self.gateway is None:
            raise RuntimeError("the stack is not running")
        return self.gateway.url

    def __enter__(self) -> Self:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._former_handler = signal.signal(signal.SIGTERM, _exit_on_signal)
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        for target, options in self.rewards.items():
            chosen = [word for key, value in options.items() for word in ("--option", f"{key}={value}")]
            for number in range(self.replicas.get(target, 1)):
                self.services.append(self._launch(f"{target.replace(':', '.')}-{number}", [target, *chosen]))
        targets = [target for target in self.rewards for _ in range(self.replicas.get(target, 1))]
        served: dict[str, str] = {}
        routes: dict[str, dict[str, list[str]]] = {}
        # Loopback is never behind a proxy, whatever the environment says.
        with httpx.Client(trust_env=False, timeout=5.0) as http:
            for target, service in zip(targets, self.services, strict=True):
                self._await(service, deadline, lambda answer: True, http)
                name = _reward_name(service, http)
                if served.setdefault(name, target) != target:
                    raise StackError(f"{served[name]} and {target} both call their reward {name!r}")
                routes.setdefault(name, {"replicas": []})["replicas"].append(service.url)
            config = self.log_dir / "gateway.yaml"
            config.write_text(yaml.safe_dump({"rewards": routes}), encoding="utf-8")
            self.gateway = self._launch("gateway", ["gateway", "--config", str(config)])
            wanted = {name: len(route["replicas"]) for name, route in routes.items()}
            self._await(self.gateway, deadline, lambda answer: answer.json()["replicas_up"] == wanted, http)

    def _launch(self, name: str, arguments: list[str]) -> Service:
        log, ready_file = self.log_dir / f"{name}.log", self.log_dir / f"{name}.ready"
        ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "flow_grpo", "serve", *arguments, "--port", "0"]
        command += ["--ready-file", str(ready_file)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", PARENT_VARIABLE: str(os.getpid())}
        with log.open("wb") as out:
            # A session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
            )
        return Service(name, process, log, ready_file)

    def _await(
        self, service: Service, deadline: float, satisfied: Callable[[httpx.Response], bool], http: httpx.Client
    ) -> None:
        """Waits until `service` is ready. Raises StackError."""
        last = "it did not listen"
        while time.monotonic() < deadline:
            if (status := service.process.poll()) is not None:
                fault = f"{service.name} ended with status {status} while starting"
                raise StackError(f"{fault}; {service.log} ends:\n{service.last_words()}")
            if not service.url and service.ready_file.exists():
                service.url = service.ready_file.read_text(encoding="utf-8").strip()
            if service.url:
                try:
                    answer = http.get(f"{service.url}/readyz")
                    if answer.status_code == 200 and satisfied(answer):
                        return
                    last = answer.text[:300]
                except httpx.HTTPError as error:
                    last = f"{type(error).__name__}: {error}"
            time.sleep(_LOOK_EVERY_S)
        fault = f"{service.name} was not ready within {self.start_timeout_s:g} s ({last})"
        raise StackError(f"{fault}; {service.log} ends:\n{service.last_words()}")

    def _stop(self) -> None:
        """Ends every process: SIGTERM to all, SIGKILL to what is left after STOP_S."""
        in_main = threading.current_thread() is threading.main_thread()
        # A second Ctrl-C must not leave processes behind; stopping is bounded.
        ignored = (
            {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
            if in_main
            else {}
        )
        running = [*([self.gateway] if self.gateway else []), *self.services]
        for service in running:
            service.process.terminate()
        deadline = time.monotonic() + STOP_S
        for service in running:
            try:
                service.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(service.process.pid, signal.SIGKILL)
                service.process.wait()
            service.ready_file.unlink(missing_ok=True)
        self.services, self.gateway = [], None
        for number, handler in ignored.items():
            signal.signal(number, handler)
        if self._former_handler is not None:
            signal.signal(signal.SIGTERM, self._former_handler)
            self._former_handler = None


def end_with_parent() -> None:
    """In a process started by a LocalStack: asks the kernel (Linux) to end it when its parent is gone."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was gone before the kernel was asked
        raise SystemExit(1)


def _reward_name(service: Service, http: httpx.Client) -> str:
    token = os.environ.get(TOKEN_VARIABLE)
    try:
        answer = http.get(f"{service.url}/v1/info", headers={"Authorization": f"Bearer {token}"} if token else {})
        return decode_rewards(answer.raise_for_status().content)[0].name
    except (httpx.HTTPError, ValueError) as error:
        raise StackError(f"{service.name} does not say what it serves: {error}") from error


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
