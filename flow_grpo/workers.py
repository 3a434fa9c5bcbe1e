"""Several processes of one reward behind one port: `flow-grpo serve REWARD --workers N`.

The parent accepts, and hands each connection to the next warm worker in turn; a connection carries one request. It
scores nothing itself. The first worker warms up alone, so that a download happens once and a wrong option is told once;
the service is ready when all are warm. A worker that ends later is replaced, and gets no connection before it is warm.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flow_grpo.runner import PARENT_VARIABLE
from reward_api.handover import ALL_WARM, ANSWERING, CONNECTION, WARM
from reward_api.listening import DRAIN_S, announce

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
STOP_S = DRAIN_S + 3.0  # a worker drains, then waits 2 s for the batch in hand
LONGEST_PAUSE_S = 30.0
_LOOK_AGAIN_S = 0.05

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Worker:
    """One process of the reward and the parent's end of its channel."""

    process: asyncio.subprocess.Process
    channel: socket.socket
    answering: bool = False
    warm: bool = False


def serve_workers(arguments: Sequence[str], count: int, host: str, port: int, ready_file: Path | None) -> int:
    """Serve with `count` workers until SIGTERM or Ctrl-C, and return the exit status: 0, or 1 if one cannot start.

    `arguments` are the target and the options of `flow-grpo serve`. Raises OSError if the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, port), family=family, backlog=2048) as listener,
        tempfile.TemporaryDirectory(prefix="flow-grpo-metrics-") as metrics,
    ):
        listener.setblocking(False)
        return asyncio.run(Workers(arguments, count, listener, ready_file, Path(metrics)).run())


class Workers:
    """Starts, watches and replaces the workers, and deals connections to them."""

    def __init__(
        self, arguments: Sequence[str], count: int, listener: socket.socket, ready_file: Path | None, metrics: Path
    ) -> None:
        self._command = [sys.executable, "-m", "flow_grpo", "serve", *arguments]
        self._count = count
        self._listener = listener
        self._ready_file = ready_file
        self._metrics = metrics
        self._workers: list[Worker] = []  # the next connection goes to the first that can take it
        self._first_warm = asyncio.Event()
        self._complete = False  # all have been warm at one time

    async def run(self) -> int:
        """Returns the exit status; no worker outlives it."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        stopped = asyncio.create_task(stop.wait())
        kept = [asyncio.create_task(self._keep(number)) for number in range(self._count)]
        tasks = [stopped, asyncio.create_task(self._deal()), *kept]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop()
        return 0 if stopped in ended else 1

    async def _keep(self, number: int) -> None:
        """Keep one worker running. Returns only if it ends before all have once been warm."""
        if number > 0:
            await self._first_warm.wait()
        pause = 0.0
        while True:
            worker = await self._start()
            status = await worker.process.wait()
            self._forget(worker)
            how = f"worker {number} (pid {worker.process.pid}) ended with status {status}"
            if not self._complete:
                logger.error("%s while starting", how)
                return
            pause = 0.0 if worker.warm else min(LONGEST_PAUSE_S, 2 * pause or 1.0)
            logger.warning("%s; another one starts in %g s", how, pause)
            await asyncio.sleep(pause)

    async def _start(self) -> Worker:
        ours, theirs = socket.socketpair()
        environment = os.environ | {PARENT_VARIABLE: str(os.getpid()), METRICS_VARIABLE: str(self._metrics)}
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *("--handover", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C reaches the parent alone, which then ends the workers in order
            )
        ours.setblocking(False)
        worker = Worker(process, ours)
        self._workers.append(worker)
        asyncio.get_running_loop().add_reader(ours, self._hear, worker)
        return worker

    def _hear(self, worker: Worker) -> None:
        try:
            reports = worker.channel.recv(16)
        except ConnectionError:
            reports = b""
        if not reports:
            asyncio.get_running_loop().remove_reader(worker.channel)
        if ANSWERING in reports:
            worker.answering = True
            if self._ready_file is not None:
                announce(self._listener, self._ready_file)
                self._ready_file = None
        if WARM in reports:
            worker.warm = True
            self._first_warm.set()
            self._let_go()

    def _let_go(self) -> None:
        """Let warm workers become ready, once all of them are warm or have been."""
        warm = [worker for worker in self._workers if worker.warm]
        self._complete = self._complete or len(warm) == self._count
        if self._complete:
            for worker in warm:
                with contextlib.suppress(OSError):
                    worker.channel.send(ALL_WARM)

    async def _deal(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except ConnectionError:  # the client left before it was accepted
                continue
            with connection:
                while not self._give(connection):  # noqa: ASYNC110 - a full channel tells nobody when it drains
                    await asyncio.sleep(_LOOK_AGAIN_S)

    def _give(self, connection: socket.socket) -> bool:
        """Hand the connection to the next worker. Before one is warm any that answers says what it waits for."""
        warm = [worker for worker in self._workers if worker.warm]
        for worker in warm or [worker for worker in self._workers if worker.answering]:
            with contextlib.suppress(OSError):  # it is dying or its channel is full
                socket.send_fds(worker.channel, [CONNECTION], [connection.fileno()])
                self._workers.remove(worker)
                self._workers.append(worker)
                return True
        return False

    def _forget(self, worker: Worker) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        self._workers.remove(worker)
        asyncio.get_running_loop().remove_reader(worker.channel)
        worker.channel.close()
        mark_process_dead(worker.process.pid, str(self._metrics))  # type: ignore[no-untyped-call]

    async def _stop(self) -> None:
        """SIGTERM to all, SIGKILL to what is left after STOP_S."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.terminate()
        ends = [asyncio.create_task(worker.process.wait()) for worker in self._workers]
        if ends:
            await asyncio.wait(ends, timeout=STOP_S)
        for worker, end in zip(self._workers, ends, strict=True):
            if not end.done():
                worker.process.kill()
            await end
