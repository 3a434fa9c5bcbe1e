"""Checkpoints: everything a run needs to go on as if it had never stopped.

Random draws are keyed by epoch and slot (``trainer.draws``), so no generator state is kept.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.ema import MovingAverage
from trainer.models.sd3 import SD3
from trainer.prompts import PromptMix
from trainer.update import PolicyUpdate

STATE = "state.pt"
_KEYS = {"epoch", "lora", "average", "average_updates", "optimizer", "optimizer_steps", "prompts"}


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message names the file."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, ``epoch_000010`` and so on, in one folder."""

    folder: Path

    def save(self, epoch: int, model: SD3, average: MovingAverage, update: PolicyUpdate, mix: PromptMix) -> Path:
        """Writes the state after ``epoch`` epochs aside and renames it; older checkpoints are then removed."""
        final = self.folder / f"epoch_{epoch:06d}"
        aside = self.folder / f".{final.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        state = {
            "epoch": epoch,
            "lora": [parameter.detach().cpu() for parameter in model.lora_parameters()],
            "average": [mean.cpu() for mean in average.average],
            "average_updates": average.updates,
            "optimizer": update.optimizer.state_dict(),
            "optimizer_steps": update.steps_done,
            "prompts": mix.state,
        }
        torch.save(state, aside / STATE)
        with average.applied():
            model.save_lora(aside)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        for older in self._all():
            if older != final:
                shutil.rmtree(older)
        return final

    def latest(self) -> Path | None:
        found = self._all()
        return found[-1] if found else None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("epoch_*"))


def restore(checkpoint: Path, model: SD3, average: MovingAverage, update: PolicyUpdate, mix: PromptMix) -> int:
    """Loads a checkpoint in place and returns the number of epochs done. Raises CheckpointError."""
    state = _read(checkpoint)
    if len(state["prompts"]) != len(mix.state):
        raise CheckpointError(f"{checkpoint}: has {len(state['prompts'])} prompt sources, the recipe {len(mix.state)}")
    parameters = model.lora_parameters()
    shapes = [tuple(value.shape) for value in state["lora"]]
    if shapes != [tuple(parameter.shape) for parameter in parameters]:
        raise CheckpointError(f"{checkpoint}: its LoRA has other shapes than the recipe's model, rank or targets give")
    with torch.no_grad():
        for parameter, value in zip(parameters, state["lora"], strict=True):
            parameter.copy_(value)
    average.restore(state["average"], state["average_updates"])
    update.optimizer.load_state_dict(state["optimizer"])
    update.steps_done = state["optimizer_steps"]
    mix.state = state["prompts"]
    return int(state["epoch"])


def _read(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / STATE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the bytes make it: pickle, zip, key and value errors
        raise CheckpointError(f"{path}: is not a readable checkpoint: {error}") from error
    if absent := sorted(_KEYS - set(state)):
        raise CheckpointError(f"{path}: lacks {', '.join(absent)}")
    return state
