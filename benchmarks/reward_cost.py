"""What a reward costs on this machine: start-up time, images a second, processor time, peak memory.

    python -m benchmarks.reward_cost pickscore
    python -m benchmarks.reward_cost geneval --prompt 'a photo of an apple'
    python -m benchmarks.reward_cost clipscore --images 16 --device cuda
    python -m benchmarks.reward_cost ocr --option backend=paddle --option models=DIR

The service runs as it is used, `flow-grpo serve` in a process of its own, over random weights of the published size:
cost does not depend on their values. OCR reads with its real weights; the judge of `vlm_judge` answers at once. Beside
other work, processor time is the figure that holds. Needs Linux and room in the temporary folder (4 GB for pickscore).
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.random_clip import save_processor, save_random_clip, save_random_open_clip
from reward_api import Item, RewardClient, Score

NETWORKS = {
    "geneval": "Mask2Former Swin-S and ViT-L/14",
    "ocr": "",
    "pickscore": "ViT-H/14",
    "hpsv2": "ViT-H/14",
    "clipscore": "ViT-L/14",
    "aesthetic": "ViT-L/14",
    "vlm_judge": "",
    "jpeg_compressibility": "",
}
SIGN = "OPEN"
START_S, SCORE_S = 900.0, 900.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reward", choices=NETWORKS)
    parser.add_argument("--images", type=int, default=8, help="512x512 pictures of one prompt (default: %(default)s)")
    parser.add_argument("--prompt", default="a photo of a red apple", help="of all pictures (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="more for the service")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reward-cost-") as place, prompt_judge() as judge:
        options = random_weights(args.reward, Path(place))
        if options:
            options["device"] = args.device
        if args.reward == "vlm_judge":
            options = {"preset": "qwen_vl", "base_url": judge, "model": "judge"}
        options |= dict(word.split("=", 1) for word in args.option)
        prompt = f'a sign that says "{SIGN}"' if args.reward == "ocr" else args.prompt
        measure(args.reward, options, args.images, prompt, Path(place) / "address")


def random_weights(reward: str, folder: Path) -> dict[str, str]:
    """The service's options, with weights written into `folder`."""
    size = NETWORKS[reward]
    if not size:
        return {}
    if reward == "geneval":
        save_random_detector(folder / "detector")
        save_random_clip(folder / "clip", "ViT-L/14")
        return {"detector": "mask2former", "model": str(folder / "detector"), "colors_model": str(folder / "clip")}
    if reward == "hpsv2":
        save_processor(folder / "processor", size)
        save_random_open_clip(folder / "hps.pt", size)
        return {"model": str(folder / "hps.pt"), "processor": str(folder / "processor")}
    save_random_clip(folder / "clip", size)
    options = {"model": str(folder / "clip")}
    if reward == "aesthetic":
        import torch

        from reward_services.aesthetic.scorer import predictor

        options["weights"] = str(folder / "head.pth")
        torch.save(predictor().state_dict(), options["weights"])
    return options


@contextmanager
def prompt_judge() -> Iterator[str]:
    """The address of a judge that answers at once, so that what the service itself costs is left."""
    answer = {"choices": [{"message": {"content": "<score>7</score>"}, "finish_reason": "stop"}]}

    class Judge(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.say({"data": [{"id": "judge"}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.say(answer)

        def say(self, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


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
        images = [picture(reward, number) for number in range(count)]
        seconds, processor_s = asyncio.run(score(url, [Item(image, prompt) for image in images], process.pid))
        peak = peak_memory_gb(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)
    threads = os.environ.get("OMP_NUM_THREADS", f"{os.cpu_count()} (all cores)")
    what = " ".join(part for part in (reward, options.get("backend"), NETWORKS[reward]) if part)
    print(
        f"{what} on {options.get('device', 'cpu')}, threads {threads}: listens after {listening:.1f} s, ready after "
        f"{ready:.1f} s, {count / seconds:.3g} images/s ({count} images in {seconds:.1f} s), "
        f"{processor_s / count:.3g} s of processor time an image, peak {peak:.2f} GB"
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


def picture(reward: str, number: int) -> NDArray[np.uint8]:
    """Noise, or for OCR a sign."""
    if reward != "ocr":
        return np.random.default_rng(number).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    sign = Image.new("RGB", (512, 512), (200, 200, 190))
    ImageDraw.Draw(sign).text((256, 200 + number), SIGN, font=ImageFont.load_default(90), fill="black", anchor="mm")
    return np.asarray(sign)


async def score(url: str, items: list[Item], pid: int) -> tuple[float, float]:
    """Seconds that the items take after one that is not counted, and the process's own processor time."""
    async with RewardClient(url, timeout_s=SCORE_S, attempts=1) as client:
        await client.score(items[:1])
        started, used = time.monotonic(), processor_time(pid)
        outcomes = await client.score(items)
        seconds, processor_s = time.monotonic() - started, processor_time(pid) - used
    for outcome in outcomes:
        if not all(isinstance(result, Score) for result in outcome.values()):
            raise SystemExit(f"an image has no score: {outcome}")
    return seconds, processor_s


def processor_time(pid: int) -> float:
    """Seconds the process has computed, in all its threads."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def peak_memory_gb(pid: int) -> float:
    """The most memory the process has held at once, in 10^9 bytes; pages of weights mapped from disk count."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    if match is None:
        raise SystemExit("the kernel does not report peak memory")
    return int(match[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
