"""docker and docker compose as the tests use them, under a project name that no user's stack has."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

REPOSITORY = Path(__file__).parents[2]
PROJECT = "flow-grpo-test"
IMAGES = {
    "gateway": "flow-grpo/gateway",
    "jobs-worker": "flow-grpo/jobs-worker",
    "geneval": "flow-grpo/geneval:cpu",
    "geneval-mmdet": "flow-grpo/geneval-mmdet:cpu",
    "ocr": "flow-grpo/ocr",
    "pickscore": "flow-grpo/pickscore:cpu",
    "trainer": "flow-grpo/trainer:cpu",
}
MMDET = ("docker-compose.yml", "docker-compose.mmdet.yml")
REWARDS = {"geneval": 8101, "ocr": 8102, "pickscore": 8103}
GATEWAY = 8100
SERVICES = ("redis", *REWARDS, "gateway", "jobs-worker")
START_S = 300.0
BUILD_S = 3600.0


def run(command: Sequence[str], *, timeout_s: float = 120.0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs in the repository; where it fails and `check` is set, the test fails with what it said."""
    environment = os.environ | {"BUILDKIT_PROGRESS": "plain", "COMPOSE_PROGRESS": "plain"}
    # What a user's shell or .env asks for is not what is tested.
    for name in ("PRESET", "REWARD_TOKEN", "REWARD_CLIENT_TOKENS", "HF_TOKEN", "COMPOSE_FILE", "COMPOSE_PROFILES"):
        environment[name] = ""
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done


def compose_command(*arguments: str, files: Sequence[str] = ("docker-compose.yml",)) -> list[str]:
    chosen = [word for file in files for word in ("-f", file)]
    return ["docker", "compose", "-p", PROJECT, *chosen, *arguments]


def compose(
    *arguments: str, files: Sequence[str] = ("docker-compose.yml",), timeout_s: float = START_S, check: bool = True
) -> str:
    """What `docker compose` printed on stdout."""
    return run(compose_command(*arguments, files=files), timeout_s=timeout_s, check=check).stdout


def docker(*arguments: str, timeout_s: float = 120.0) -> str:
    """What `docker` printed on stdout."""
    return run(["docker", *arguments], timeout_s=timeout_s).stdout.strip()


def inspect(name: str) -> Any:
    """Of a container or an image."""
    return json.loads(docker("inspect", name))[0]


def await_health(name: str, within_s: float = START_S) -> None:
    """Waits until a container is healthy; what it logged is told where it is not."""
    deadline = time.monotonic() + within_s
    while (state := inspect(name)["State"])["Health"]["Status"] != "healthy":
        if time.monotonic() > deadline or state["Status"] != "running":
            said = run(["docker", "logs", "--tail", "40", name])
            pytest.fail(f"{name} is {state}:\n{said.stdout}{said.stderr}")
        time.sleep(1)


def containers(service: str) -> list[Any]:
    """The containers of a service, inspected; also those that ended."""
    found = compose("ps", "--all", "--quiet", service).split()
    return [inspect(name) for name in found]


def the_container(service: str) -> Any:
    (only,) = containers(service)
    return only


def curl(*arguments: str, port: int = GATEWAY, path: str) -> Any:
    """What curl got from a published port, which must be a 2xx: JSON, or text where it is none."""
    url = f"http://127.0.0.1:{port}{path}"
    said = run(["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *arguments, url]).stdout
    try:
        return json.loads(said)
    except ValueError:
        return said


def no_engine() -> str | None:
    """Why there is no Docker Engine to test with, or None."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    try:
        if run(["docker", "info"], timeout_s=30, check=False).returncode:
            return "no Docker Engine answers"
        if run(["docker", "compose", "version"], timeout_s=30, check=False).returncode:
            return "docker has no compose plugin"
    except subprocess.TimeoutExpired:
        return "the Docker Engine is silent"
    return None


def lettered(text: str) -> np.ndarray:
    """Black letters on white, (96, 256, 3)."""
    canvas = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(canvas).text((30, 20), text, fill="black", font=ImageFont.load_default(48))
    return np.asarray(canvas)
