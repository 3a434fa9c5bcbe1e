"""Muon (Jordan et al., 2024) in float32: momentum, then the nearest orthogonal matrix as the step.

``torch.optim.Muon`` iterates in bfloat16, which a CPU without such instructions emulates a hundred times slower, and
one matrix at a time; here all matrices of one shape go through the iteration together.
"""

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that drives singular values towards one: a x + b x^3 + c x^5."""

ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> the same with all singular values near one, by Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7).view(-1, 1, 1)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal


class Muon(torch.optim.Optimizer):
    """For matrices inside a network. A step has the root mean square .2 lr, as AdamW's steps have."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                directions = torch.stack([self._direction(matrix, group["momentum"]) for matrix in matrices])
                step = group["lr"] * 0.2 * max(shape) ** 0.5
                for matrix, direction in zip(matrices, orthogonalise(directions), strict=True):
                    matrix.add_(direction, alpha=-step)
        return loss

    def _direction(self, matrix: torch.nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's look-ahead on the averaged gradient."""
        gradient = matrix.grad
        assert gradient is not None
        state = self.state[matrix]
        average: Tensor = state.setdefault("average", torch.zeros_like(matrix))
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)
