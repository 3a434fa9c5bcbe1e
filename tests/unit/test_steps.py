"""Steps against the stochastic calculus they come from, not against their own formulas."""

import itertools
import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.distributions import Normal

from trainer.steps import STEPS, Step, adams_bashforth, cps, flow_sde, ode

pytestmark = pytest.mark.unit

TIMES = [(0.9, 0.8), (0.6022, 0.4649), (0.278, 0.0089), (0.05, 0.01)]
SD3_SIGMAS = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def on_a_point(step: Step, t: float, s: float, level: float) -> tuple[float, float, float]:
    """Share of x_0, share of x_1 and fresh noise in x_s, for the perfect model of the path from x_1 to x_0."""

    def mean(x0: float, x1: float) -> float:
        x = torch.tensor([(1 - t) * x0 + t * x1])
        return step(x, torch.tensor([x1 - x0]), t, s, level).mean.item()

    nowhere = torch.zeros(1)
    return mean(1, 0), mean(0, 1), step(nowhere, nowhere, t, s, level).std


class GaussianTarget:
    """Images drawn from N(m, c^2): everything about the flow is known in closed form."""

    def __init__(self, m: float, c: float) -> None:
        self.m, self.c = m, c

    def marginal(self, t: float) -> tuple[float, float]:
        """(mean, variance) of x_t."""
        return (1 - t) * self.m, (1 - t) ** 2 * self.c**2 + t**2

    def velocity(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """E[x_1 - x_0 | x_t = x] by the regression of one Gaussian on another."""
        mean, variance = self.marginal(t)
        covariance = t - (1 - t) * self.c**2
        return -self.m + covariance / variance * (x - mean)

    def score(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """d log p_t / dx by automatic differentiation."""
        mean, variance = self.marginal(t)
        x = x.clone().requires_grad_()
        Normal(mean, math.sqrt(variance)).log_prob(x).sum().backward()
        assert x.grad is not None
        return x.grad


# The ODE


def test_ode_goes_back_and_forth_between_image_velocity_and_noise():
    x0, x1 = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    v = x1 - x0
    x = ode(x0, v, 0.0, 0.3).mean
    torch.testing.assert_close(x, 0.7 * x0 + 0.3 * x1)
    torch.testing.assert_close(ode(x, v, 0.3, 0.0).mean, x0)
    torch.testing.assert_close(ode(x, v, 0.3, 1.0).mean, x1)
    torch.testing.assert_close(ode(x, v, 0.3, 1.0).mean - ode(x, v, 0.3, 0.0).mean, v)


def test_adams_bashforth_integrates_a_velocity_that_is_linear_in_t_exactly():
    a, b = noise(2, 3), noise(2, 3, seed=1)
    t_before, t, s = 0.9, 0.75, 0.4  # unequal steps
    x = noise(2, 3, seed=2)
    found = adams_bashforth(x, a + b * t, t, s, a + b * t_before, t_before)
    torch.testing.assert_close(found, x + a * (s - t) + b * (s**2 - t**2) / 2)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ab2", 2)])
def test_the_solvers_errors_fall_with_their_order(solver: str, order: int):
    target = GaussianTarget(m=1.5, c=0.6)
    start = torch.tensor([-1.2, 0.1, 0.9])

    def error(steps: int) -> float:
        x, before = start, None
        times = torch.linspace(0.95, 0.05, steps + 1).tolist()
        for t, s in itertools.pairwise(times):
            v = target.velocity(x, t)
            x = ode(x, v, t, s).mean if solver == "euler" or before is None else adams_bashforth(x, v, t, s, *before)
            before = v, t
        (m0, v0), (m1, v1) = target.marginal(times[0]), target.marginal(times[-1])
        exact = m1 + math.sqrt(v1 / v0) * (start - m0)  # the probability flow between Gaussians
        return (x - exact).abs().max().item()

    assert error(20) / error(40) == pytest.approx(2**order, rel=0.15)


def test_ode_is_deterministic():
    assert ode(noise(4), noise(4), 0.5, 0.4, 0.7).std == 0


@pytest.mark.parametrize("name", ["flow_sde", "cps"])
@pytest.mark.parametrize(("t", "s"), TIMES)
def test_without_noise_both_stochastic_steps_are_the_ode(name: str, t: float, s: float):
    x, v = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    step = STEPS[name](x, v, t, s, 0.0)
    torch.testing.assert_close(step.mean, ode(x, v, t, s).mean, rtol=1e-5, atol=1e-5)
    assert step.std == 0


# Flow-SDE


@pytest.mark.parametrize(("t", "s"), TIMES)
def test_flow_sde_is_the_ode_plus_langevin_dynamics_along_the_score(t: float, s: float):
    """Reverse-time SDE with the flow's marginals: dx = (v - sigma^2 / 2 grad log p) dt + sigma dw."""
    target, x, level = GaussianTarget(m=0.4, c=0.7), noise(16), 0.7
    v, sigma = target.velocity(x, t), level * math.sqrt(t / (1 - t))
    step = flow_sde(x, v, t, s, level)
    torch.testing.assert_close(step.mean, x + (v - sigma**2 / 2 * target.score(x, t)) * (s - t))
    assert step.std == pytest.approx(sigma * math.sqrt(t - s))


def marginal_error(step: Step, target: GaussianTarget, steps: int, level: float) -> tuple[float, float]:
    """Errors of mean and variance at t = 0 after ``steps`` equal steps from the exact marginal at t = .9."""
    mean, variance = target.marginal(0.9)
    for index in range(steps):
        t, s = 0.9 * (1 - index / steps), 0.9 * (1 - (index + 1) / steps)
        ends = torch.tensor([0.0, 1.0])
        moved = step(ends, target.velocity(ends, t), t, s, level)
        offset, slope = moved.mean[0].item(), (moved.mean[1] - moved.mean[0]).item()
        mean, variance = offset + slope * mean, slope**2 * variance + moved.std**2
    exact_mean, exact_variance = target.marginal(0.0)
    return mean - exact_mean, variance - exact_variance


@pytest.mark.parametrize("level", [0.3, 0.7, 1.2])
@pytest.mark.parametrize("target", [GaussianTarget(0.5, 0.6), GaussianTarget(-1.0, 1.5)])
def test_flow_sde_keeps_the_marginals_to_first_order(target: GaussianTarget, level: float):
    means, variances = zip(*(marginal_error(flow_sde, target, steps, level) for steps in (100, 200, 400)), strict=True)
    # Along the mean path the predicted noise is 0, so the steps move the mean exactly; the variance pays.
    assert means == pytest.approx((0, 0, 0), abs=1e-5)
    assert variances[0] / variances[1] == pytest.approx(2, rel=0.1)
    assert variances[1] / variances[2] == pytest.approx(2, rel=0.1)
    assert abs(variances[2]) < 0.025 * target.c**2


def test_a_wrong_noise_term_would_not_keep_the_marginals():
    def forgets_the_correction(x, v, t, s, level):
        return flow_sde(x, v, t, s, level)._replace(mean=ode(x, v, t, s).mean)

    target = GaussianTarget(0.5, 0.6)
    few, many = (marginal_error(forgets_the_correction, target, steps, 0.7)[1] for steps in (100, 400))
    assert few / many == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("s", [0.9601, 0.99, 0.5])
def test_the_first_flow_sde_step_replaces_only_the_vanishing_denominator(s: float):
    x, v, a = noise(8), noise(8, seed=1), 0.7
    step = flow_sde(x, v, 1.0, s, a)
    assert step.std == pytest.approx(a)  # sigma^2 = a^2 / (1 - s), and -dt = 1 - s
    torch.testing.assert_close(step.mean, x + (v + a**2 / (1 - s) / 2 * x) * (s - 1))


def test_next_to_one_the_denominator_is_the_steps_own():
    t, s, a = 0.9601, 0.9133, 0.7
    assert flow_sde(noise(1), noise(1), t, s, a).std == pytest.approx(a * math.sqrt(t / (1 - t) * (t - s)))


# CPS


@pytest.mark.parametrize("level", [0.2, 0.8, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9601), *TIMES, (0.0089, 0.0)])
def test_cps_leaves_exactly_the_noise_that_is_due(t: float, s: float, level: float):
    image, kept, fresh = on_a_point(cps, t, s, level)
    assert image == pytest.approx(1 - s, abs=1e-6)
    assert math.hypot(kept, fresh) == pytest.approx(s, abs=1e-6)
    assert fresh == pytest.approx(s * math.sin(level * math.pi / 2), abs=1e-9)


def test_cps_by_many_samples():
    x0, count, t, s = 0.3, 400_000, 0.6022, 0.4649
    x1, eps = noise(count), noise(count, seed=1)
    step = cps((1 - t) * x0 + t * x1, x1 - x0, t, s, 0.8)
    left = (step.mean + step.std * eps - (1 - s) * x0) / s
    assert left.mean().item() == pytest.approx(0, abs=4 / math.sqrt(count))
    assert left.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * count))


def test_cps_draws_nothing_in_its_last_step():
    x, v = noise(8), noise(8, seed=1)
    step = cps(x, v, 0.0089, 0.0, 0.8)
    assert step.std == 0
    torch.testing.assert_close(step.mean, x - 0.0089 * v)


def test_cps_with_all_noise_fresh_keeps_none_of_the_old():
    assert on_a_point(cps, 0.5, 0.4, 1.0)[1] == pytest.approx(0, abs=1e-6)


# What a change of velocity does to the mean


@pytest.mark.parametrize(("t", "s"), TIMES)
def test_the_means_slope_in_the_velocity(t: float, s: float):
    a, dt = 0.8, s - t
    sigma, std = a * math.sqrt(t / (1 - t)), s * math.sin(a * math.pi / 2)
    slopes = {
        "ode": dt,
        "flow_sde": (1 + sigma**2 * (1 - t) / (2 * t)) * dt,
        "cps": math.sqrt(s**2 - std**2) * (1 - t) - t * (1 - s),
    }
    for name, slope in slopes.items():
        v = noise(5).requires_grad_()
        STEPS[name](noise(5, seed=1), v, t, s, a).mean.sum().backward()
        torch.testing.assert_close(v.grad, torch.full((5,), slope), rtol=1e-5, atol=1e-6)


# SD3's schedule


def test_the_figures_of_sd3s_schedule():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    assert sigmas == pytest.approx(SD3_SIGMAS, abs=5e-5)
    t, s = sigmas[8:10]
    _, kept, fresh = on_a_point(flow_sde, t, s, 0.7)
    assert math.hypot(kept, fresh) == pytest.approx(0.24, abs=0.005)
    _, kept, fresh = on_a_point(cps, t, s, 0.7)
    assert math.hypot(kept, fresh) == pytest.approx(0.0089, abs=5e-5)
    assert on_a_point(flow_sde, *sigmas[9:], 0.7)[2] == pytest.approx(0.0063, abs=5e-5)


# Precision


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_are_float32_whatever_the_models_dtype(name: str, dtype: torch.dtype):
    x, v = noise(2, 3, 4, 4).to(dtype), noise(2, 3, 4, 4, seed=1).to(dtype)
    step = STEPS[name](x, v, 0.6022, 0.4649, 0.7)
    assert step.mean.dtype == torch.float32
    assert torch.equal(step.mean, STEPS[name](x.float(), v.float(), 0.6022, 0.4649, 0.7).mean)
