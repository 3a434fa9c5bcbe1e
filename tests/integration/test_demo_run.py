"""The demo as a user starts it, with a tiny random model: real services, real training, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import flow_grpo
from tiny_world.prompts import TASKS

pytestmark = pytest.mark.integration

REPOSITORY = Path(flow_grpo.__file__).parents[1]


def start(recipe: Path, out: Path, *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flow_grpo", "demo", f"--recipe={recipe}", f"--out={out}", "--world=small"]
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [*command, *overrides],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that name ``folder``, as the demo, its services and its gateway all do."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(folder) in command and process.pid != os.getpid():
            found.append(command)
    return found


def wait_for(path: Path, process: "subprocess.Popen[str]", within_s: float = 180.0) -> None:
    """Until ``path`` has content."""
    deadline = time.monotonic() + within_s
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, "the demo ended early"
        assert time.monotonic() < deadline, f"no {path.name} within {within_s:g} s"
        time.sleep(0.1)


def test_the_demo_trains_evaluates_and_reports(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    out.parent.mkdir()
    with start(recipe, out, "--epochs=2") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("[1/3] starting geneval and the gateway")
        rest, _ = process.communicate(timeout=240)
    log = out.with_suffix(".log").read_text()
    assert process.returncode == 0, log
    assert processes_of(tmp_path) == []

    summary = json.loads((out / "summary.json").read_text())
    assert summary["seconds"] > 0
    for label in ("before", "after"):
        assert set(summary[label]["tasks"]) == set(TASKS)
        assert summary[label]["score"] == pytest.approx(sum(summary[label]["tasks"].values()) / len(TASKS))
        saved = json.loads((out / "evaluation" / f"{label}.json").read_text())
        assert saved["rewards"]["geneval"]["images"] == 2 * len(TASKS)
        assert saved["rewards"]["geneval"]["missing"] == 0
    assert [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    report = (out / "report.html").read_text(encoding="utf-8")
    assert 'class="missing"' not in report
    assert "color_attr" in report

    assert f"report: {out / 'report.html'}" in rest
    for task in TASKS:
        assert f"  {task}" in rest
    assert "before    after" in rest


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_in_the_middle_leaves_no_process_behind(
    recipe: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "demo"
    with start(recipe, out) as process:
        wait_for(out / "metrics.jsonl", process)
        assert len(processes_of(tmp_path)) == 3  # the demo itself, GenEval, the gateway
        process.send_signal(number)
        process.communicate(timeout=60)
    log = out.with_suffix(".log").read_text()
    assert process.returncode == status, log
    assert processes_of(tmp_path) == []
    assert "Traceback" not in log
    if number == signal.SIGINT:
        assert "flow-grpo demo: stopped before its end" in log


def test_ctrl_c_while_the_services_start_leaves_no_process_behind(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with start(recipe, out) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_for(tmp_path / "demo-services" / "geneval-0.ready", process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130, out.with_suffix(".log").read_text()
    assert processes_of(tmp_path) == []


def test_a_model_that_cannot_be_loaded_is_one_sentence_and_a_failure(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with start(recipe, out, f"--model.path={tmp_path / 'absent'}") as process:
        process.communicate(timeout=120)
    log = out.with_suffix(".log").read_text()
    assert process.returncode == 1, log
    assert str(tmp_path / "absent") in log
    assert "Traceback" not in log
    assert processes_of(tmp_path) == []
