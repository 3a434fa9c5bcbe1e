"""One denoising step of a flow-matching model as a Gaussian policy.

Notation: t (= sigma) runs from 1 (noise) to 0 (image); a step goes from t to s < t; the model predicts the
velocity v = x_1 - x_0 at x_t = (1 - t) x_0 + t x_1. Each function returns the mean and the standard deviation
of the next latent; the caller draws the noise. Everything is float32 whatever the model's dtype.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class StepDistribution(NamedTuple):
    """N(mean, std^2 I) of the next latent; ``std`` 0 means the step is deterministic and no part of the policy."""

    mean: Tensor  # shape of x
    std: float


Step = Callable[[Tensor, Tensor, float, float, float], StepDistribution]


def ode(x: Tensor, v: Tensor, t: float, s: float, noise_level: float = 0.0) -> StepDistribution:
    """Euler step of the probability-flow ODE: mean = x + v dt."""
    return StepDistribution(x.float() + v.float() * (s - t), 0.0)


def adams_bashforth(x: Tensor, v: Tensor, t: float, s: float, v_before: Tensor, t_before: float) -> Tensor:
    """Second-order step of the probability-flow ODE, with the velocity of the step before: an Euler step's cost, and an
    error that falls with the square of the step.

    The two-step Adams-Bashforth rule for unequal steps: x + dt [v + dt / (2 dt_before) (v - v_before)].
    """
    x, v, v_before = x.float(), v.float(), v_before.float()
    dt, dt_before = s - t, t - t_before
    return x + (v + (v - v_before) * (dt / (2 * dt_before))) * dt


def flow_sde(x: Tensor, v: Tensor, t: float, s: float, noise_level: float) -> StepDistribution:
    """Flow-SDE (arXiv 2505.05470, Eq. 9) with sigma = a sqrt(t / (1 - t)).

    At t = 1 the denominator 1 - t vanishes; there, and only there, it is taken at s, the schedule's second sigma.
    """
    x, v = x.float(), v.float()
    dt = s - t
    sigma = noise_level * math.sqrt(t / (1 - (s if t == 1 else t)))
    drift = v + sigma**2 / (2 * t) * (x + (1 - t) * v)
    return StepDistribution(x + drift * dt, sigma * math.sqrt(-dt))


def cps(x: Tensor, v: Tensor, t: float, s: float, noise_level: float) -> StepDistribution:
    """Coefficients-preserving sampling (arXiv 2509.05952): the noise left after the step is exactly s.

    A share of it, std = s sin(a pi / 2), is drawn afresh; the rest sqrt(s^2 - std^2) is kept from the predicted noise.
    """
    x, v = x.float(), v.float()
    x0 = x - t * v
    x1 = x + (1 - t) * v
    std = s * math.sin(noise_level * math.pi / 2)
    return StepDistribution((1 - s) * x0 + math.sqrt(s**2 - std**2) * x1, std)


STEPS: dict[str, Step] = {"flow_sde": flow_sde, "cps": cps, "ode": ode}
