"""The whole stack, from `up --wait` to `down -v`; the tests run in this order on one stack."""

import itertools
import json
import re
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from docker_stack import (
    GATEWAY,
    PROJECT,
    REPOSITORY,
    REWARDS,
    SERVICES,
    compose,
    compose_command,
    containers,
    curl,
    docker,
    lettered,
    run,
    the_container,
)
from waiting import eventually

from reward_api import Item
from reward_api.wire import MSGPACK, encode_request

pytestmark = pytest.mark.usefixtures("stack")

SCALED = ("docker-compose.yml", "docker-compose.scale.yml")
SHORT = [
    "recipes/tiny_geneval.yaml",
    "--rollout.groups=8",
    "--rollout.group_size=4",
    "--evaluation.images_per_task=2",
    "--evaluation.batch=12",
]


def replicas_up() -> dict[str, int]:
    return curl(path="/readyz")["replicas_up"]


def killed_with_items_waiting() -> bool:
    """Kills geneval once more; whether the gateway now holds items for it and has no other."""
    # -1 is everyone but the first process, which is Docker's init: it ends with its only child.
    compose("exec", "-T", "geneval", "sh", "-c", "kill -9 -1", check=False)
    (waiting,) = re.findall(r'reward_queue_depth_items\{reward="geneval"\} (\S+)', curl(path="/metrics"))
    return float(waiting) > 0 and replicas_up()["geneval"] == 0


def of_the_runs(path: str) -> str:
    """A file on the volume of runs."""
    return compose("run", "--rm", "--no-deps", "-T", "--entrypoint", "cat", "trainer", f"runs/{path}")


def test_every_container_is_confined():
    for service in SERVICES:
        container = the_container(service)
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["Memory"] > 0, service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service
        assert container["Config"]["User"] in ("10001:10001", "redis"), service
        wrote = run(["docker", "exec", container["Id"], "touch", "/opt/x"], check=False)
        assert "Read-only file system" in wrote.stderr, service
    published = docker("ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", "{{.Ports}}")
    addresses = re.findall(r"(\S+)->", published)
    assert sorted(addresses) == [f"127.0.0.1:{port}" for port in (GATEWAY, *REWARDS.values())]


def test_redis_keeps_what_it_is_given():
    asked = ("exec", "-T", "redis", "redis-cli", "config", "get")
    assert compose(*asked, "appendonly").split() == ["appendonly", "yes"]
    assert compose(*asked, "maxmemory-policy").split() == ["maxmemory-policy", "noeviction"]


def test_curl_gets_an_answer_from_every_endpoint(pictures: Path):
    for port in (GATEWAY, *REWARDS.values()):
        assert curl(port=port, path="/livez") == "ok\n"
        curl(port=port, path="/readyz")
        assert "# TYPE reward_" in curl(port=port, path="/metrics")
        assert "/v1/score" in curl(port=port, path="/openapi.json")["paths"]
        assert "swagger" in curl(port=port, path="/docs")
    for reward, port in REWARDS.items():
        assert curl(port=port, path="/v1/info")["name"] == reward
    assert {reward["name"] for reward in curl(path="/v1/rewards")["rewards"]} == set(REWARDS)
    assert set(curl(path="/v1/admin/replicas")["rewards"]) == set(REWARDS)
    assert "<!doctype html>" in curl(path="/").lower()

    circles = ("--form", f"image=@{pictures / 'circles.png'}", "--form", "prompt=a photo of a red circle")
    fox = ("--form", f"image=@{pictures / 'fox.png'}", "--form", 'prompt=a sign that says "FOX"')
    for port in (REWARDS["geneval"], GATEWAY):
        said = curl(*circles, "--form", "rewards=geneval", port=port, path="/v1/score")["items"][0]["results"]
        found = {(thing["class"], thing.get("color")) for thing in said["geneval"]["details"]["detections"]}
        assert found == {("circle", "red"), ("circle", "blue")}
    for port in (REWARDS["ocr"], GATEWAY):
        said = curl(*fox, "--form", "rewards=ocr", port=port, path="/v1/score")["items"][0]["results"]
        assert (said["ocr"]["score"], said["ocr"]["details"]["recognised"]) == (1.0, "FOX")
    alone, through = (
        curl(*circles, "--form", "rewards=pickscore", port=port, path="/v1/score")["items"][0]["results"]["pickscore"]
        for port in (REWARDS["pickscore"], GATEWAY)
    )
    assert -1.0 <= alone["details"]["cosine"] <= 1.0
    assert through["score"] == pytest.approx(alone["score"], rel=1e-5)


def test_the_trainer_takes_two_epochs_and_leaves_its_run_on_the_volume():
    said = compose("run", "--rm", "-T", "trainer", "train", *SHORT, "--epochs=2", timeout_s=900)
    assert "runs/tiny_geneval: summary.json, report.html, checkpoints" in said
    epochs = [json.loads(line) for line in of_the_runs("tiny_geneval/metrics.jsonl").splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert all(epoch["reward/missing_fraction"] == 0 for epoch in epochs)
    assert "url: http://gateway:8100" in of_the_runs("tiny_geneval/config.yaml")
    assert "<html" in of_the_runs("tiny_geneval/report.html")


def test_a_reward_killed_in_mid_epoch_costs_no_score():
    before = the_container("geneval")
    longer = ["--rollout.groups=16", "--rollout.group_size=8", "--epochs=8", "--name=killed"]
    command = compose_command("run", "--rm", "-T", "trainer", "train", *SHORT, *longer)
    said = []
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run_:
        assert run_.stdout is not None
        for line in run_.stdout:
            said.append(line)
            if "epoch    1" in line:
                # Scoring is a short part of an epoch, and a killed reward is back within seconds.
                eventually(killed_with_items_waiting, within_s=120, what="items wait for the killed reward", step_s=0.5)
    assert run_.returncode == 0, "".join(said)
    after = the_container("geneval")
    assert after["Id"] == before["Id"]
    assert after["RestartCount"] > before["RestartCount"]
    epochs = [json.loads(line) for line in of_the_runs("killed/metrics.jsonl").splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 9))
    assert all(epoch["reward/missing_fraction"] == 0 for epoch in epochs)


def test_a_job_outlives_a_restart_of_redis():
    texts = [f"{number:03d}" for number in range(160)]
    items = [Item(lettered(text), f'a sign that says "{text}"', rewards=("ocr",)) for text in texts]
    with httpx.Client(base_url=f"http://127.0.0.1:{GATEWAY}", trust_env=False, timeout=90) as http:
        job = http.post("/v1/jobs", content=encode_request(items), headers={"Content-Type": MSGPACK}).json()["id"]

        def progress() -> dict[str, int]:
            return http.get(f"/v1/jobs/{job}").json()["results"]

        eventually(lambda: progress()["scored"] > 0, within_s=120, what="the job has begun", step_s=0.5)
        assert progress()["pending"] > 0
        compose("restart", "redis")
        assert progress()["pending"] > 0, "the job was over before Redis was back"
        eventually(
            lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "done",
            within_s=400,
            what="the job is done",
            step_s=0.5,
        )
        assert progress() == {"scored": len(items), "failed": 0, "pending": 0}
        results = [json.loads(line) for line in http.get(f"/v1/jobs/{job}/results").text.splitlines()]
    assert sorted(line["index"] for line in results) == list(range(len(items)))
    assert all(line["results"]["ocr"]["details"]["target"] == texts[line["index"]] for line in results)


def test_the_gateway_finds_further_replicas_by_dns():
    started = the_container("gateway")["State"]["StartedAt"]
    compose("up", "--wait", "--scale", "ocr=3", files=SCALED)
    eventually(
        lambda: replicas_up() == {"geneval": 1, "ocr": 3, "pickscore": 1},
        within_s=60,
        what="three replicas",
        step_s=0.5,
    )
    items = [Item(lettered(f"A{number}"), f'a sign that says "A{number}"', rewards=("ocr",)) for number in range(48)]
    said = httpx.post(
        f"http://127.0.0.1:{GATEWAY}/v1/score",
        content=encode_request(items),
        headers={"Content-Type": MSGPACK, "Accept": "application/json"},
        timeout=120,
        trust_env=False,
    )
    assert all("score" in answer["results"]["ocr"] for answer in said.json()["items"])
    batches = re.findall(r'reward_batch_seconds_count\{replica="http://([^:]+):8102"\} (\S+)', curl(path="/metrics"))
    addresses = {
        network["IPAddress"]
        for container in containers("ocr")
        for network in container["NetworkSettings"]["Networks"].values()
    }
    assert len(addresses) == 3
    assert {address for address, count in batches if float(count) > 0} >= addresses
    assert the_container("gateway")["State"]["StartedAt"] == started
    compose("up", "--wait")
    eventually(lambda: replicas_up()["ocr"] == 1, within_s=60, what="one replica again", step_s=0.5)
    assert the_container("gateway")["State"]["StartedAt"] == started


def test_every_container_stops_within_ten_seconds():
    for service in reversed(SERVICES):
        began = time.monotonic()
        compose("stop", "--timeout", "20", service)
        assert time.monotonic() - began < 10, service
        assert the_container(service)["State"]["ExitCode"] in (0, 143), service


def test_down_leaves_nothing():
    compose("--profile", "trainer", "down", "--volumes")
    mine = ("--filter", f"label=com.docker.compose.project={PROJECT}", "--quiet")
    kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
    assert list(itertools.chain.from_iterable(docker(*kind, *mine).split() for kind in kinds)) == []
