"""Rollouts: groups of images and the trajectory the update replays.

Shapes: a batch holds whole groups, B = groups_per_batch x group_size images, copies of one prompt side by side.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import RolloutConfig, Solver
from trainer.draws import key, stream
from trainer.models.sd3 import SD3, Conditioning
from trainer.policy_loss import log_prob
from trainer.steps import STEPS, StepDistribution, adams_bashforth


@dataclass(frozen=True)
class Transition:
    """One stochastic step t -> s of a batch, all in float32; ``next`` is what the step is given credit for."""

    t: float
    s: float
    x_BCHW: Tensor
    next_BCHW: Tensor
    mean_BCHW: Tensor
    log_prob_B: Tensor


@dataclass(frozen=True)
class Rollout:
    """A batch's pictures (B, H, W, 3), the text features they were drawn with, and the steps of the window."""

    slots: tuple[int, ...]
    images: NDArray[np.uint8]
    text: Conditioning
    unconditional: Conditioning | None
    transitions: tuple[Transition, ...]


def window(config: RolloutConfig, seed: int, epoch: int) -> range:
    """The stochastic, trained steps of an epoch: one draw for all groups of all ranks.

    A window that differed inside a group would compare images of different policies.
    """
    if config.window is None:
        return range(config.steps - 1)
    settings = config.window
    start = stream(seed, "window", epoch).randint(settings.first, settings.last - settings.size)
    return range(start, start + settings.size)


class ImageNoise:
    """All noise of a batch's images: each image has a stream of its own."""

    def __init__(self, keys: Sequence[int], shape: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(value) for value in keys]
        self._shape = tuple(shape)
        self._device = device

    def draw(self) -> Tensor:
        """(B, C, H, W), standard normal."""
        each = [torch.randn(self._shape, generator=generator) for generator in self._generators]
        return torch.stack(each).to(self._device)


@torch.no_grad()
def roll_out(
    model: SD3,
    text: Conditioning,
    unconditional: Conditioning | None,
    slots: Sequence[int],
    config: RolloutConfig,
    scale: str,
    trained: range,
    seed: int,
    epoch: int,
) -> Rollout:
    """Draws ``group_size`` images for each slot. ``text`` holds one row a slot; ``scale`` is the log-prob's."""
    size = config.group_size
    rows, empty_row = text, unconditional
    text = text.expand(size)
    unconditional = unconditional.expand(len(slots) * size) if unconditional is not None else None
    keys = [key(seed, "image", epoch, slot, image) for slot in slots for image in range(size)]
    noises = ImageNoise(keys, model.latent_shape, model.device)
    sigmas = model.sigmas(config.steps)
    prefix = sigmas[: trained.start + 1]
    if config.shared_noise:
        starts = ImageNoise([key(seed, "group", epoch, slot) for slot in slots], model.latent_shape, model.device)
        empty = empty_row.expand(len(slots)) if empty_row is not None else None
        x = follow_ode(model, starts.draw(), rows, empty, prefix, config.guidance, config.solver)
        x = x.repeat_interleave(size, 0)
    else:
        x = follow_ode(model, noises.draw(), text, unconditional, prefix, config.guidance, config.solver)
    taken: list[tuple[float, float, Tensor, Tensor, Tensor, StepDistribution]] = []
    for t, s in itertools.pairwise(sigmas[trained.start : trained.stop + 1]):
        v = model.velocity(x, t, text, unconditional, config.guidance)
        step = STEPS[config.step](x, v, t, s, config.noise_level)
        following = step.mean + step.std * noises.draw()
        taken.append((t, s, x, following, x - t * v, step))
        x = following
    x = follow_ode(model, x, text, unconditional, sigmas[trained.stop :], config.guidance, config.solver)
    transitions = []
    for t, s, before, following, predicted, step in taken:
        credited = following if config.credit == "noise" else credited_by_image(step, s, predicted, x)
        transitions.append(Transition(t, s, before, credited, step.mean, log_prob(credited, step, scale)))
    return Rollout(tuple(slots), model.decode(x), text, unconditional, tuple(transitions))


def credited_by_image(step: StepDistribution, s: float, predicted_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
    """What the step's next latent is expected to be, given the image the trajectory ended in.

    Every step kind has mean = (1 - s) x0 + (...) x1 in the predicted image x0 and noise x1. Had the step known the
    final image, its mean would be mean + (1 - s) (image - x0); what the drawn noise adds to that says nothing about
    the image, hence nothing about the reward, and only makes the policy gradient noisier.

    Where a group shares x_t, its advantages sum to zero over x0 and the images alone move the policy. Where it does
    not, image - x0 and the advantage may both depend on x_t; their product, which no action caused, grows by itself.
    """
    return step.mean + (1 - s) * (image_BCHW - predicted_BCHW)


def follow_ode(
    model: SD3,
    x: Tensor,
    text: Conditioning,
    unconditional: Conditioning | None,
    sigmas: Sequence[float],
    guidance: float,
    solver: Solver,
) -> Tensor:
    """Deterministic steps through the given noise levels; fewer than two levels leave x as it is.

    The first step is Euler's whatever the solver: there is no velocity before it, and one from before a stochastic
    step belongs to another trajectory.
    """
    before: tuple[Tensor, float] | None = None
    for t, s in itertools.pairwise(sigmas):
        v = model.velocity(x, t, text, unconditional, guidance)
        if solver == "euler" or before is None:
            x = STEPS["ode"](x, v, t, s, 0.0).mean
        else:
            x = adams_bashforth(x, v, t, s, *before)
        before = v, t
    return x


@torch.no_grad()
def sample(
    model: SD3,
    text: Conditioning,
    unconditional: Conditioning | None,
    keys: Sequence[int],
    steps: int,
    guidance: float,
    solver: Solver = "euler",
) -> NDArray[np.uint8]:
    """Pictures (B, H, W, 3) by the ODE, one noise key an image, as evaluation wants them."""
    x = ImageNoise(keys, model.latent_shape, model.device).draw()
    x = follow_ode(model, x, text, unconditional, model.sigmas(steps), guidance, solver)
    return model.decode(x)
