"""A recipe small enough to train with real services inside a test."""

import itertools
import json
import signal
from pathlib import Path

import pytest
import yaml

from tiny_world.prompts import WORLDS, split

# A shell starts its background jobs with Ctrl-C ignored, and so would what the tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def recipe(tmp_path: Path, pipeline_folder: Path) -> Path:
    """Two groups of two images an epoch, two held-out images a task."""
    sources = []
    for name, prompts in zip(("train", "held_out"), split(WORLDS["small"]), strict=True):
        by_task = itertools.groupby(prompts, key=lambda prompt: prompt["tag"])
        few = [prompt for _, same in by_task for prompt in itertools.islice(same, 2)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(prompt) + "\n" for prompt in few))
        sources.append({"path": str(path), "rewards": {"geneval": 1.0}})
    settings = {
        "name": "tiny",
        "epochs": 100_000,
        "model": {"path": str(pipeline_folder), "resolution": 64, "max_sequence_length": 1, "device": "cpu"},
        "lora": {"rank": 2, "alpha": 4},
        "prompts": sources[:1],
        "rollout": {"groups": 2, "group_size": 2, "steps": 3},
        "samples_every": 1,
        "evaluation": {"prompts": sources[1:], "steps": 2, "images_per_task": 2, "batch": 12},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
