"""What is in the images, and what they do by themselves."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_stack import IMAGES, MMDET, PROJECT, REWARDS, await_health, compose, curl, docker, inspect, run

EVERY = list(IMAGES)


def python(image: str, code: str) -> str:
    return docker("run", "--rm", "--network", "none", "--read-only", "--entrypoint", "python", image, "-c", code)


@pytest.mark.parametrize("service", EVERY)
def test_an_image_runs_as_nobody_special_and_says_what_it_is(images: dict[str, str], service: str):
    config = inspect(images[service])["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"][0] == "flow-grpo", "a shell before it would keep SIGTERM to itself"
    assert config["Labels"]["org.opencontainers.image.title"].startswith("Flow-GRPO")
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    if service == "trainer":
        assert "Healthcheck" not in config
    elif service == "jobs-worker":
        assert config["Healthcheck"]["Test"] == ["CMD", "test", "-s", "/tmp/ready"]
    else:
        (port,) = (published.removesuffix("/tcp") for published in config["ExposedPorts"])
        assert config["Healthcheck"]["Test"] == ["CMD", "python", "/opt/ready.py", port]


@pytest.mark.parametrize("service", EVERY)
def test_an_image_holds_its_own_extra_and_no_secret(images: dict[str, str], service: str):
    names = ["torch", "cv2", "diffusers", "celery", "onnxruntime", "mmdet", "pip"]
    code = f"import importlib.util as u, json; print(json.dumps([name for name in {names} if u.find_spec(name)]))"
    own = {
        "gateway": {"celery"},
        "jobs-worker": {"celery"},
        "geneval": {"torch", "cv2"},
        "geneval-mmdet": {"torch", "cv2", "mmdet"},
        "ocr": {"cv2", "onnxruntime"},
        "pickscore": {"torch"},
        "trainer": {"torch", "cv2", "diffusers"},
    }
    assert set(json.loads(python(images[service], code))) == own[service]
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", images[service])
    kept = history + json.dumps(inspect(images[service])["Config"])
    assert "TOKEN" not in kept
    assert "PASSWORD" not in kept


@pytest.mark.parametrize("service", ["gateway", "ocr"])
def test_without_a_token_nothing_is_served_to_a_network(images: dict[str, str], service: str):
    command = ["docker", "run", "--rm", "--env", "REWARD_REPLICAS=ocr=http://ocr:8102", images[service]]
    refused = run([*command, "--host=0.0.0.0"], check=False)
    assert refused.returncode == 1
    assert "refusing to serve 0.0.0.0 without a token" in refused.stderr


def test_with_a_token_an_image_serves_alone_and_ends_on_sigterm_as_the_first_process(images: dict[str, str]):
    name = docker("run", "--detach", "--env", "REWARD_TOKEN=abc", "--publish", "127.0.0.1::8102", images["ocr"])
    try:
        await_health(name)
        port = docker("port", name, "8102").rpartition(":")[2]
        asked = ["curl", "--silent", "--noproxy", "*", "--write-out", "%{http_code}", "--output", "/dev/null"]
        url = f"http://127.0.0.1:{port}/v1/info"
        assert run([*asked, url]).stdout == "401"
        assert run([*asked, "--header", "Authorization: Bearer abc", url]).stdout == "200"
        docker("stop", "--time", "10", name)
        assert inspect(name)["State"]["ExitCode"] in (0, 143)
    finally:
        docker("rm", "--force", "--volumes", name)


def test_a_trainer_that_is_the_first_process_ends_on_sigterm(images: dict[str, str]):
    longest = ["prompts", "geneval", "--count", "50000000", "--out", "/tmp/prompts.jsonl"]
    name = docker("run", "--detach", images["trainer"], *longest)
    try:
        time.sleep(5)
        assert inspect(name)["State"]["Running"]
        docker("stop", "--time", "10", name)
        assert inspect(name)["State"]["ExitCode"] == 143
    finally:
        docker("rm", "--force", "--volumes", name)


@pytest.fixture
def mmdet_checkpoint(images: dict[str, str]) -> Iterator[None]:
    """Random weights in the place of the official checkpoint."""
    code = (
        "import torch; from reward_services.geneval.official import build_official; "
        "torch.save({'state_dict': build_official('cpu').state_dict()}, '/models/mask2former.pth')"
    )
    compose("run", "--rm", "--no-deps", "--entrypoint", "python", "geneval", "-c", code, files=MMDET)
    yield
    compose("down", "--volumes", "--remove-orphans", files=MMDET)


@pytest.mark.usefixtures("mmdet_checkpoint")
def test_mmdet_scores_an_image_in_its_container(pictures: Path):
    # Colors by palette: CLIP would be downloaded.
    options = ["--option", "detector=mmdet", "--option", "model=/models/mask2former.pth", "--option", "colors=palette"]
    name = f"{PROJECT}-mmdet"
    compose("run", "--detach", "--no-deps", "--service-ports", "--name", name, "geneval", *options, files=MMDET)
    await_health(name)
    form = ("--form", f"image=@{pictures / 'circles.png'}", "--form", "prompt=a photo of a bench")
    said = curl(*form, port=REWARDS["geneval"], path="/v1/score")
    assert said["items"][0]["results"]["geneval"]["details"]["tag"] == "single_object"
