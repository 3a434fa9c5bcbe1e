"""What the training loops of flow and taste share: which optimizer holds what, the learning rate, a step."""

from collections.abc import Iterable, Sequence

import torch

from tiny_world.pretrain.muon import Muon


def muon_and_adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    inside: str,
    others: Iterable[torch.nn.Parameter],
    learning_rate: float,
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices whose name contains ``inside``, AdamW for all that is left and for ``others``."""
    matrices: list[torch.nn.Parameter] = []
    rest = list(others)
    for name, parameter in named_parameters:
        (matrices if inside in name and parameter.ndim == 2 else rest).append(parameter)
    return [
        Muon(matrices, lr=learning_rate),
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def rate(step: int, steps: int, cooldown: float = 0.5) -> float:
    """Share of the learning rate: warm-up over 200 steps, constant, then linear to zero over the last ``cooldown`` of
    all steps."""
    left = (steps - step) / max(1.0, cooldown * steps)
    return min(1.0, (step + 1) / 200, left)


def take_step(tools: Sequence[torch.optim.Optimizer], learning_rate: float) -> None:
    """One step of every optimizer at this learning rate; gradients are cleared."""
    for tool in tools:
        for group in tool.param_groups:
            group["lr"] = learning_rate
        tool.step()
        tool.zero_grad()
