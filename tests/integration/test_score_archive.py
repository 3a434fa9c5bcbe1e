"""``flow-grpo score`` on drawn pictures in GenEval's layout, with a real gateway and a real service."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import flow_grpo
from flow_grpo.runner import LocalStack
from tiny_world.prompts import TASKS, WORLDS, split
from tiny_world.scenes import misread, render, sample_scene

pytestmark = pytest.mark.integration

REPOSITORY = Path(flow_grpo.__file__).parents[1]
PROMPTS_PER_TASK = 2


def draw(folder: Path) -> int:
    """Of each prompt two right pictures and, but for single objects, two wrong; returns how many there are."""
    world, rng, drawn = WORLDS["small"], random.Random(0), 0
    _, held_out = split(world)
    chosen = [[prompt for prompt in held_out if prompt["tag"] == task][:PROMPTS_PER_TASK] for task in TASKS]
    for index, prompt in enumerate(prompt for same in chosen for prompt in same):
        samples = folder / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(prompt))  # no newline, as GenEval writes it
        shown = [prompt] if prompt["tag"] == "single_object" else [prompt, misread(prompt, world, rng)]
        for number, metadata in enumerate(shown * 2):
            Image.fromarray(render(sample_scene(metadata, world, rng))).save(samples / f"{number:05d}.png")
            drawn += 1
    return drawn


def start(archive: Path, url: str, out: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flow_grpo", "score", str(archive), f"--url={url}", f"--out={out}", *more]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(process: "subprocess.Popen[str]") -> tuple[int, list[list[str]], str]:
    """Exit status, the table's cells, and what was said beside it."""
    with process:
        try:
            table, said = process.communicate(timeout=240)
        finally:
            process.kill()
    return process.returncode, [line.split() for line in table.splitlines()], said


def test_a_killed_run_goes_on_and_ends_with_the_same_file(tmp_path: Path) -> None:
    archive = tmp_path / "pictures"
    count = draw(archive)
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    with LocalStack({"geneval": {"world": "small"}}, log_dir=tmp_path / "logs") as stack:
        status, table, said = finished(start(archive, stack.gateway_url, whole, "--reward=geneval"))
        assert status == 0, said
        assert f"{count} of {count} pictures scored, 0 of them before" in said
        tasks = [
            [task, "1.000" if task == "single_object" else "0.500", str(images), str(PROMPTS_PER_TASK), "0"]
            for task in TASKS
            for images in [PROMPTS_PER_TASK * (2 if task == "single_object" else 4)]
        ]
        mean = ["mean", "of", "tasks", "0.583", str(count), str(PROMPTS_PER_TASK * len(TASKS)), "0"]
        assert table == [["geneval", "score", "images", "prompts", "missing"], *tasks, mean]

        service = stack.services[0]
        slow = start(archive, service.url, resumed, "--batch=1", "--in-flight=1")
        deadline = time.monotonic() + 120
        while not (resumed.exists() and resumed.read_bytes().count(b"\n") >= 5):
            assert slow.poll() is None, "the run ended early"
            assert time.monotonic() < deadline, "five pictures are not scored within 120 s"
            time.sleep(0.005)
        service.process.send_signal(signal.SIGSTOP)  # so that it cannot end before it is killed
        try:
            slow.kill()
            finished(slow)
        finally:
            service.process.send_signal(signal.SIGCONT)
        before = resumed.read_bytes()
        lines = before.count(b"\n")
        assert 5 <= lines < count
        resumed.write_bytes(before[:-20])  # and its last line is torn

        status, again, said = finished(start(archive, service.url, resumed))
        assert status == 0, said
        assert f"{lines - 1} of them before" in said
        assert again == table
    assert resumed.read_bytes() == whole.read_bytes()
