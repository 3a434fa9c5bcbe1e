"""A run that loses its rewards stops with their name and goes on from its last checkpoint."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flow_grpo.runner import LocalStack

pytestmark = pytest.mark.integration


def train(recipe: Path, url: str, *overrides: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "flow_grpo",
        "train",
        str(recipe),
        f"--rewards.url={url}",
        "--rewards.timeout_s=20",
    ]
    return subprocess.Popen(
        [*command, f"--out={recipe.parent}", "--checkpoint_every=1", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def epochs(metrics: Path) -> list[int]:
    if not metrics.exists():
        return []
    return [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]


def test_a_lost_reward_stops_the_run_and_a_resumed_one_goes_on(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    with LocalStack({"geneval": {"world": "small"}}, log_dir=tmp_path / "services") as stack:
        process = train(recipe, stack.gateway_url)
        deadline = time.monotonic() + 180
        while len(epochs(folder / "metrics.jsonl")) < 2:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no second epoch within 180 s"
            time.sleep(0.1)
        stack.services[0].process.kill()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    fault = output.splitlines()[-1]
    assert fault.startswith("flow-grpo train: ")
    assert "geneval" in fault
    assert (folder / "report.html").exists()
    done = epochs(folder / "metrics.jsonl")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"epoch_{done[-1]:06d}"]

    with LocalStack({"geneval": {"world": "small"}}, log_dir=tmp_path / "services") as stack:
        refused = train(recipe, stack.gateway_url)
        assert "--resume" in refused.communicate(timeout=120)[0]
        assert refused.returncode == 1
        resumed = train(recipe, stack.gateway_url, "--resume", f"--epochs={done[-1] + 2}")
        output, _ = resumed.communicate(timeout=180)
    assert resumed.returncode == 0, output
    assert epochs(folder / "metrics.jsonl") == list(range(1, done[-1] + 3))
    assert set(json.loads((folder / "summary.json").read_text())) >= {"before", "after", "seconds"}
