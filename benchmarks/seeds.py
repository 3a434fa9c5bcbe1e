"""A recipe run with several seeds through the demo's own command: figures as a table, curves and pictures as PNGs.

    python -m benchmarks.seeds recipes/tiny_ocr.yaml --seeds 0 1 2 --out runs/seeds/tiny_ocr

The runs follow each other, for two at once would share the cores. A run that has its summary is not repeated. Words
after the options are overrides of the recipe. Writes ``table.md``, ``curves.png`` and ``pictures.png`` into the folder.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from trainer.before_after import Item
from trainer.grids import Sample, save_grid
from trainer.paired import PairedDifference, paired_diversity, paired_rewards
from trainer.tracking import read_metrics, reward_names

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SMOOTH = 10
"""Epochs whose mean is one point of a curve."""
PICTURES_PER_TASK = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and what is made of them")
    options, overrides = parser.parse_known_args()
    runs = [run(options.recipe, seed, options.out / f"seed_{seed}", overrides) for seed in options.seeds]
    report = table(runs)
    (options.out / "table.md").write_text(report)
    curves(runs, options.out / "curves.png")
    pictures(runs, options.out / "pictures.png")
    print(report, end="")


def run(recipe: Path, seed: int, folder: Path, overrides: list[str]) -> Path:
    """The run's folder, after a run if it holds no finished one."""
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "flow_grpo", "demo", "--recipe", str(recipe), "--out", str(folder)]
        subprocess.run([*command, f"--seed={seed}", *overrides], check=True)
    return folder


def evaluation(folder: Path, label: str) -> dict[str, Any]:
    """What the run's evaluation ``before`` or ``after`` saved."""
    content: dict[str, Any] = json.loads((folder / "evaluation" / f"{label}.json").read_text())
    return content


def table(runs: list[Path]) -> str:
    """A line a run and measure: before, after, their paired difference with its interval, in the standard deviation of
    the images before too; then the mean of the runs."""
    lines = [
        "| run | held-out | before | after | paired difference | in deviations before |",
        "|---|---|---|---|---|---|",
    ]
    finals: dict[str, list[float]] = {}
    for folder in runs:
        before, after = evaluation(folder, "before"), evaluation(folder, "after")
        for name, difference in paired_rewards(before, after).items():
            old, new = (saved["rewards"][name]["score"] for saved in (before, after))
            finals.setdefault(name, []).append(new)
            lines.append(_row(folder.name, name, old, new, difference))
        if spread := paired_diversity(before, after):
            old, new = (statistics.mean(saved["diversity"].values()) for saved in (before, after))
            finals.setdefault("diversity", []).append(new)
            lines.append(_row(folder.name, "diversity", old, new, spread))
    for name, values in finals.items():
        spread_of = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        lines.append(f"| all {len(values)} | {name} | | {statistics.mean(values):.3f}{spread_of} | | |")
    seconds = [json.loads((folder / "summary.json").read_text())["seconds"] for folder in runs]
    lines.append(f"\nSeconds: {', '.join(f'{value:.0f}' for value in seconds)}.")
    return "\n".join(lines) + "\n"


def _row(run: str, name: str, old: float, new: float, paired: PairedDifference) -> str:
    unit = paired.deviation
    relative = f"{paired.mean / unit:+.2f} [{paired.low / unit:+.2f}, {paired.high / unit:+.2f}]" if unit else "-"
    return f"| {run} | {name} | {old:.3f} | {new:.3f} | {paired} | {relative} |"


def curves(runs: list[Path], path: Path) -> None:
    """Training rewards by epoch, a panel each, and the gradient's norm; a line a run."""
    metrics = {folder.name: read_metrics(folder) for folder in runs}
    rewards = reward_names(next(iter(metrics.values())))
    panels = [*(f"reward/{name}" for name in rewards), "policy/gradient_norm"]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], panels, strict=True):
        for label, lines in metrics.items():
            values = np.array([entry.get(name, np.nan) for entry in lines])
            whole = len(values) // SMOOTH * SMOOTH
            means = np.nanmean(values[:whole].reshape(-1, SMOOTH), axis=1)
            axis.plot((np.arange(len(means)) + 0.5) * SMOOTH, means, label=label.replace("_", " "))
        axis.set_title(name.removeprefix("reward/").removeprefix("policy/").replace("_", " "))
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def pictures(runs: list[Path], path: Path) -> None:
    """Held-out pictures: a row a prompt, before and then after each run, from the same noise."""
    folders = [(runs[0], "before"), *((folder, "after") for folder in runs)]
    items = [evaluation(folder, when)["items"] for folder, when in folders]
    taken: dict[str, int] = {}
    samples = []
    for same in zip(*items, strict=True):
        tag = same[0]["tag"]
        taken[tag] = taken.get(tag, 0) + 1
        if taken[tag] <= PICTURES_PER_TASK:
            samples += [_sample(folder, item) for (folder, _), item in zip(folders, same, strict=True)]
    save_grid(samples, path, columns=2 * len(folders))


def _sample(folder: Path, item: Item) -> Sample:
    with Image.open(folder / "evaluation" / item["image"]) as picture:
        image = np.asarray(picture.convert("RGB"))
    return Sample(image, item["prompt"], next(iter(item["scores"].values())))


if __name__ == "__main__":
    main()
