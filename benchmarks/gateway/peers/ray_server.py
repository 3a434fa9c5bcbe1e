"""Ray Serve: python ray_server.py PORT NAME=REPLICAS:BASE_MS:ITEM_MS ... One application at /NAME each."""

import asyncio
import os
import sys
import time
from pathlib import Path

REPOSITORY = str(Path(__file__).parents[3])
sys.path.append(REPOSITORY)
os.environ["PYTHONPATH"] = REPOSITORY
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from benchmarks.gateway.fake import score_batch


@serve.deployment
class Scorer:
    def __init__(self, base_ms: float, item_ms: float) -> None:
        self.cost = base_ms, item_ms

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.0)
    async def score(self, bodies: list[bytes]) -> list[float]:
        batch = [np.frombuffer(body, np.uint8) for body in bodies]
        return await asyncio.to_thread(score_batch, batch, *self.cost)

    async def __call__(self, request: Request) -> dict[str, float]:
        return {"score": await self.score(await request.body())}


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=8, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    for argument in sys.argv[2:]:
        name, _, numbers = argument.partition("=")
        replicas, base_ms, item_ms = numbers.split(":")
        deployment = Scorer.options(
            num_replicas=int(replicas), max_ongoing_requests=64, ray_actor_options={"num_cpus": 0}
        )
        serve.run(deployment.bind(float(base_ms), float(item_ms)), name=name, route_prefix=f"/{name}")
    while True:
        time.sleep(3600)
