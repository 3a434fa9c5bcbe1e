"""`python -m benchmarks.soak`: the gateway at 70 % load for many minutes while replicas are killed and callers err.

Every image ends in the ledger as scored or as refused with a reason. A wrong or missing score, a hostile request that
is not answered with 4xx, or a gateway that grows after its warm-up is status 1.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles

import msgspec
import psutil

from benchmarks.gateway.fake import SIDE, picture
from benchmarks.gateway.load import Connections, Ledger, Request, ask, post
from benchmarks.gateway.systems import Cost, FlowGrpo
from benchmarks.stopping import leave_on_sigterm

REWARD = "fake"
COST = Cost(base_ms=20.0, item_ms=10.0, replicas=3)
LOAD = 0.7
IMAGES = 4  # a request
HOSTILE_SHARE = 0.01
KILL_EVERY_S = 30.0
WATCH_EVERY_S = 2.0
MOST_GROWTH = 0.05
_JSON = {"Content-Type": "application/json"}
_MSGPACK = {"Content-Type": "application/msgpack"}


class Stand(FlowGrpo):
    """The gateway and its replicas, any of which can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        super().__init__({REWARD: COST}, folder, Path(sys.executable))
        self._started: list[tuple[list[str], int]] = []

    def _serve(self, arguments: list[str], port: int) -> None:
        self._started.append((arguments, port))
        super()._serve(arguments, port)

    @property
    def gateway(self) -> psutil.Process:
        """The process started last, after its replicas."""
        return psutil.Process(self._processes[COST.replicas].pid)

    def replace(self, replica: int) -> None:
        """SIGKILL, then the same command again."""
        self._processes[replica].kill()
        self._processes[replica].wait(timeout=10)
        super()._serve(*self._started[replica])
        self._processes[replica] = self._processes.pop()


def hostile_requests() -> list[bytes]:
    """Requests that deserve a 4xx each."""
    short = {"image": {"shape": (SIDE, SIDE, 3), "data": picture(1).tobytes()[:-1]}, "prompt": "", "rewards": [REWARD]}
    unknown = {"image": {"shape": (1, 1, 3), "data": b"abc"}, "prompt": "", "rewards": ["beauty"]}
    return [
        post("/v1/score", _MSGPACK, b"\xc1 no message"),
        post("/v1/score", _MSGPACK, msgspec.msgpack.encode({"items": [short]})),
        post("/v1/score", _MSGPACK, msgspec.msgpack.encode({"items": [unknown]})),
        post("/v1/score", _JSON | {"Content-Encoding": "gzip"}, b"\x1f\x8b"),
        post("/v1/score", _JSON, b'{"items": [{"image": "AAAA", "prompt": "a", "rewards": ["fake"]}]}'),
        post("/v1/score", _JSON, b"[" * 5000),
        post("/v1/nothing", _JSON, b"{}"),
    ]


class Soak:
    """One run: open-loop arrivals, killings and a watch on the gateway's memory, side by side."""

    def __init__(self, stand: Stand, minutes: float, seed: int) -> None:
        self.ledger = Ledger()
        self.hostile: Counter[int] = Counter()
        self.kills = 0
        self.memory: list[tuple[float, int]] = []
        self._stand = stand
        self._length_s = 60.0 * minutes
        self._draws = random.Random(seed)
        self._connections = Connections("127.0.0.1", stand.ports[REWARD])

    async def run(self) -> None:
        others = [asyncio.create_task(self._kill()), asyncio.create_task(self._watch())]
        try:
            await self._arrive()
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._connections.aclose()

    async def _arrive(self) -> None:
        """Poisson arrivals that wait for nobody."""
        rate = LOAD * COST.capacity() / IMAGES
        started = due = time.monotonic()
        number = 0
        bad = hostile_requests()
        async with asyncio.TaskGroup() as requests:
            while due - started < self._length_s:
                due += self._draws.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if self._draws.random() < HOSTILE_SHARE:
                    requests.create_task(self._offend(self._draws.choice(bad)))
                    continue
                request = self._stand.encode(REWARD, range(number, number + IMAGES), deadline_s=60.0)
                number += IMAGES
                requests.create_task(ask(self._connections, request, self._stand.decode, self.ledger, timeout_s=90.0))

    async def _offend(self, wire: bytes) -> None:
        answer = await self._connections.post(Request([], wire), 90.0)
        self.hostile[answer.status] += 1

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(KILL_EVERY_S)
            await asyncio.to_thread(self._stand.replace, self.kills % COST.replicas)
            self.kills += 1

    async def _watch(self) -> None:
        started = time.monotonic()
        while True:
            self.memory.append((time.monotonic() - started, self._stand.gateway.memory_info().rss))
            await asyncio.sleep(WATCH_EVERY_S)

    def growth(self) -> float:
        """Of the gateway's resident memory at rest, from the second tenth of the run to its last tenth.

        Images that wait while a replica starts again come and go. What stays, a leak, is in the least memory of a tenth
        as well; its lower quartile is taken, for the very least is one sample.
        """
        early = [size for when, size in self.memory if 0.1 <= when / self._length_s < 0.2]
        late = [size for when, size in self.memory if when / self._length_s >= 0.9]
        return quantiles(late, n=4)[0] / quantiles(early, n=4)[0] - 1

    def report(self) -> dict[str, object]:
        ends = self.ledger.ends
        wrongly_answered = sum(count for status, count in self.hostile.items() if not 400 <= status < 500)
        return {
            "minutes": self._length_s / 60,
            "images": ends.total(),
            "images_per_s": round(ends.total() / self._length_s, 1),
            "capacity_images_per_s": round(COST.capacity(), 1),
            "ends": dict(ends),
            "hostile_answers": {str(status): count for status, count in sorted(self.hostile.items())},
            "replicas_killed": self.kills,
            "gateway_mib": [round(size / 2**20, 1) for _, size in self.memory[:: max(1, len(self.memory) // 20)]],
            "gateway_mib_at_most": round(max(size for _, size in self.memory) / 2**20, 1),
            "memory_growth": round(self.growth(), 4),
            "passed": not ends["lost"] and not wrongly_answered and self.growth() < MOST_GROWTH,
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    leave_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Stand(Path(folder)) as stand:
        soak = Soak(stand, options.minutes, options.seed)
        asyncio.run(soak.run())
    text = json.dumps(soak.report(), indent=2) + "\n"
    print(text, end="")
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text, encoding="utf-8")
    return 0 if soak.report()["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
