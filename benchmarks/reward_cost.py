"""What a reward costs on this machine: start-up time, images a second, peak memory.

    python -m benchmarks.reward_cost pickscore
    python -m benchmarks.reward_cost geneval --prompt 'a photo of an apple'
    python -m benchmarks.reward_cost clipscore --images 16 --device cuda

The service runs as it is used, `flow-grpo serve` in a process of its own, over random weights of the published size:
cost does not depend on their values. Needs Linux and room in the temporary folder (4 GB for pickscore).
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from benchmarks.random_clip import save_random_clip
from reward_api import Item, RewardClient, Score

NETWORKS = {
    "geneval": "Mask2Former Swin-S and ViT-L/14",
    "pickscore": "ViT-H/14",
    "clipscore": "ViT-L/14",
    "aesthetic": "ViT-L/14",
    "jpeg_compressibility": "",
}
START_S, SCORE_S = 600.0, 900.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reward", choices=NETWORKS)
    parser.add_argument("--images", type=int, default=8, help="512x512 pictures of one prompt (default: %(default)s)")
    parser.add_argument("--prompt", default="a photo of a red apple", help="of all pictures (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reward-cost-") as place:
        options = random_weights(args.reward, Path(place))
        if options:
            options["device"] = args.device
        measure(args.reward, options, args.images, args.prompt, Path(place) / "address")


def random_weights(reward: str, folder: Path) -> dict[str, str]:
    """The service's options, with weights written into `folder`."""
    size = NETWORKS[reward]
    if not size:
        return {}
    if reward == "geneval":
        save_random_detector(folder / "detector")
        save_random_clip(folder / "clip", "ViT-L/14")
        return {"detector": "mask2former", "model": str(folder / "detector"), "colors_model": str(folder / "clip")}
    save_random_clip(folder / "clip", size)
    options = {"model": str(folder / "clip")}
    if reward == "aesthetic":
        import torch

        from reward_services.aesthetic.scorer import predictor

        options["weights"] = str(folder / "head.pth")
        torch.save(predictor().state_dict(), options["weights"])
    return options


def save_random_detector(folder: Path) -> None:
    """GenEval's detector at full size; all it sees is apples, so that a color is asked of the most objects."""
    import torch
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    from reward_services.geneval.coco import CLASSES

    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(id2label=dict(enumerate(CLASSES))))
    model.class_predictor.bias.data[CLASSES.index("apple")] = 20.0
    model.save_pretrained(folder)


def measure(reward: str, options: dict[str, str], count: int, prompt: str, ready_file: Path) -> None:
    """Serve, score `count` images, print one line."""
    command = [sys.executable, "-m", "flow_grpo", "serve", reward, "--port", "0", "--ready-file", str(ready_file)]
    for key, value in options.items():
        command += ["--option", f"{key}={value}"]
    started = time.monotonic()
    process = subprocess.Popen(command)
    try:
        listening = wait_for(lambda: ready_file.exists(), process) - started
        url = ready_file.read_text(encoding="utf-8").strip()
        ready = wait_for(lambda: is_ready(url), process) - started
        seconds = asyncio.run(score(url, count, prompt))
        peak = peak_memory_gb(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)
    threads = os.environ.get("OMP_NUM_THREADS", f"{os.cpu_count()} (all cores)")
    print(
        f"{reward} {NETWORKS[reward] or '-'} on {options.get('device', 'cpu')}, threads {threads}: listens after "
        f"{listening:.1f} s, ready after {ready:.1f} s, {count / seconds:.3g} images/s ({count} images in "
        f"{seconds:.1f} s), peak {peak:.2f} GB"
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> float:
    """The time at which `condition` held."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if condition():
            return time.monotonic()
        if process.poll() is not None:
            raise SystemExit("the service ended at its start")
        time.sleep(0.1)
    raise SystemExit(f"the service was not ready within {START_S:g} s")


def is_ready(url: str) -> bool:
    """Whether /readyz says so."""
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


async def score(url: str, count: int, prompt: str) -> float:
    """Seconds that `count` images take, after one that is not counted."""
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 256, (512, 512, 3), dtype=np.uint8) for _ in range(count)]
    items = [Item(image, prompt) for image in images]
    async with RewardClient(url, timeout_s=SCORE_S, attempts=1) as client:
        await client.score(items[:1])
        started = time.monotonic()
        outcomes = await client.score(items)
        seconds = time.monotonic() - started
    for outcome in outcomes:
        if not all(isinstance(result, Score) for result in outcome.values()):
            raise SystemExit(f"an image has no score: {outcome}")
    return seconds


def peak_memory_gb(pid: int) -> float:
    """The most memory the process has held at once, in 10^9 bytes; pages of weights mapped from disk count."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    if match is None:
        raise SystemExit("the kernel does not report peak memory")
    return int(match[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
