"""Moving average of the LoRA weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """average <- d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self.updates = 0
        self.average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for mean, parameter in zip(self.average, self._parameters, strict=True):
            mean.lerp_(parameter, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights; the raw ones come back afterwards."""
        raw = [parameter.data for parameter in self._parameters]
        for parameter, mean in zip(self._parameters, self.average, strict=True):
            parameter.data = mean.clone()
        try:
            yield
        finally:
            for parameter, value in zip(self._parameters, raw, strict=True):
                parameter.data = value

    def restore(self, average: Sequence[Tensor], updates: int) -> None:
        for mean, saved in zip(self.average, average, strict=True):
            mean.copy_(saved)
        self.updates = updates
