"""Where a run's numbers go: ``metrics.jsonl``, one line an epoch, and TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"


class Tracker:
    """Appends an epoch's metrics; a resumed run first drops the lines after its checkpoint."""

    def __init__(self, folder: Path, epochs_done: int = 0) -> None:
        self._path = folder / METRICS
        kept = [entry for entry in read_metrics(folder) if entry["epoch"] <= epochs_done]
        self._path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The run's metrics, an entry an epoch; a last line that was cut short is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def reward_names(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """Rewards among the metrics: each is logged as ``reward/NAME`` together with ``reward/NAME_std``."""
    keys = dict.fromkeys(key for entry in metrics for key in entry if key.startswith("reward/"))
    return [key.removeprefix("reward/") for key in keys if f"{key}_std" in keys]
