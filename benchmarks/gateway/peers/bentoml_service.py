"""BentoML: bentoml serve bentoml_service:Scorer. Its batching works on lists, here of one multipart file a request."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np

sys.path.append(str(Path(__file__).parents[3]))

from benchmarks.gateway.fake import cost_from_environment, score_batch


@bentoml.service(workers=int(os.environ.get("BENCH_WORKERS", "1")), traffic={"timeout": 30}, metrics={"enabled": False})
class Scorer:
    def __init__(self) -> None:
        self.cost = cost_from_environment()

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=30_000)
    def score(self, images: list[Path]) -> list[float]:
        return score_batch([np.frombuffer(image.read_bytes(), np.uint8) for image in images], *self.cost)
