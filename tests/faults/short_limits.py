"""`flow-grpo` with time limits short enough for a test; they come from TEST_* variables, in seconds."""

import os
import sys

import gateway.app
from flow_grpo.cli import main
from reward_api import Limits, listening

if __name__ == "__main__":
    limits = {name.removeprefix("TEST_"): float(text) for name, text in os.environ.items() if name.startswith("TEST_")}
    listening.KEEP_ALIVE_S = int(limits.get("keep_alive", listening.KEEP_ALIVE_S))
    listening.HEADERS_S = limits.get("headers", listening.HEADERS_S)
    body_seconds = limits.get("body", Limits().body_seconds)
    gateway.app.Limits = lambda: Limits(body_seconds=body_seconds)  # type: ignore[misc,assignment]
    sys.exit(main(sys.argv[1:]))
