"""LitServe: python litserve_server.py PORT WORKERS. It takes no raw body, so images come as multipart."""

import sys
from pathlib import Path

import litserve
import numpy as np
from fastapi import Request

sys.path.append(str(Path(__file__).parents[3]))

from benchmarks.gateway.fake import cost_from_environment, score_batch


class Api(litserve.LitAPI):
    def setup(self, device):
        self.cost = cost_from_environment()

    def decode_request(self, request: Request):
        return np.frombuffer(request["image"].file.read(), np.uint8)

    def batch(self, inputs):
        return list(inputs)

    def predict(self, batch):
        return score_batch(batch, *self.cost)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"score": output}


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    api = Api(max_batch_size=16, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=30)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
