"""Log-probabilities, the clipped loss and the KL against torch's distributions and plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from trainer.config import KLConfig, LossConfig
from trainer.policy_loss import clipped_policy_loss, kl_to_reference, log_prob, log_ratio, uses_reference
from trainer.steps import STEPS, StepDistribution

pytestmark = pytest.mark.unit

SHAPE = (3, 2, 4, 4)
T, S, LEVEL = 0.6022, 0.4649, 0.7
DT = S - T


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean_of_each(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([image.mean() for image in x])


# Log-probability


@pytest.mark.parametrize("std", [0.01, 0.3, 2.0])
def test_log_prob_is_the_gaussian_density_averaged_over_the_elements(std: float):
    mean = noise(0)
    following = mean + std * noise(1)
    expected = mean_of_each(Normal(mean, std).log_prob(following))
    torch.testing.assert_close(log_prob(following, StepDistribution(mean, std)), expected)


def test_the_flow_grpo_scale_is_the_density_without_its_constants():
    mean, std = noise(0), 0.3
    following = mean + std * noise(1)
    full = mean_of_each(Normal(mean, std).log_prob(following))
    constants = Normal(0.0, std).log_prob(torch.tensor(0.0))
    step = StepDistribution(mean, std)
    torch.testing.assert_close(log_prob(following, step, "flow_grpo"), 2 * std**2 * (full - constants))


def test_log_prob_does_not_grow_with_the_latent():
    small, large = noise(0, (1, 2, 4, 4)), noise(0, (1, 2, 4, 4)).repeat(1, 1, 3, 3)
    zero = StepDistribution(torch.zeros(()), 0.5)
    torch.testing.assert_close(log_prob(small, zero), log_prob(large, zero))


@pytest.mark.parametrize("scale", ["full", "flow_grpo"])
def test_a_deterministic_step_has_no_log_prob(scale: str):
    with pytest.raises(ValueError, match="deterministic"):
        log_prob(noise(0), StepDistribution(noise(0), 0.0), scale)


def test_log_prob_is_float32():
    assert log_prob(noise(0).bfloat16(), StepDistribution(noise(1), 0.5)).dtype == torch.float32


# The log-ratio of two policies


SLOPES = {
    # d mean / d v of a step, from METHOD's closed forms
    "flow_sde": lambda t, s, a: (1 + a**2 * t / (1 - t) * (1 - t) / (2 * t)) * (s - t),
    "cps": lambda t, s, a: s * math.cos(a * math.pi / 2) * (1 - t) - t * (1 - s),
}


@pytest.mark.parametrize("kind", ["flow_sde", "cps"])
@pytest.mark.parametrize(("t", "s"), [(0.9601, 0.9133), (T, S), (0.4649, 0.2780)])
def test_log_ratio_identity(kind: str, t: float, s: float):
    """mean(eps dmu / std) - mean(dmu^2) / (2 std^2), with dmu the slope times the change of velocity."""
    x, v_old, eps = noise(0), noise(1), noise(2)
    change = 0.1 * torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1) * noise(3)
    old, new = (STEPS[kind](x, v, t, s, LEVEL) for v in (v_old, v_old + change))
    following = old.mean + old.std * eps
    dmu = SLOPES[kind](t, s, LEVEL) * change
    expected = mean_of_each(eps * dmu) / old.std - mean_of_each(dmu**2) / (2 * old.std**2)

    got = log_ratio(following, new, log_prob(following, old), old.mean, LossConfig())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-6)

    unscaled = log_ratio(
        following, new, log_prob(following, old, "flow_grpo"), old.mean, LossConfig(log_prob="flow_grpo")
    )
    torch.testing.assert_close(unscaled, 2 * old.std**2 * expected, rtol=1e-4, atol=2e-6)

    # RatioNorm leaves std times the first term, of each image by itself.
    normed = log_ratio(following, new, log_prob(following, old), old.mean, LossConfig(ratio_norm=True))
    torch.testing.assert_close(normed, mean_of_each(eps * dmu), rtol=1e-4, atol=2e-6)


def test_the_same_policy_has_ratio_one():
    step = STEPS["cps"](noise(0), noise(1), T, S, LEVEL)
    following = step.mean + step.std * noise(2)
    for config in (LossConfig(), LossConfig(log_prob="flow_grpo"), LossConfig(ratio_norm=True)):
        old = log_prob(following, step, config.log_prob)
        assert log_ratio(following, step, old, step.mean, config).tolist() == [0, 0, 0]


def test_ratio_norm_of_one_image_does_not_depend_on_the_others():
    old, following = StepDistribution(noise(0), 0.5), noise(1)
    new = StepDistribution(old.mean + torch.tensor([0.1, 1.0, 9.0]).view(3, 1, 1, 1), 0.5)
    config = LossConfig(ratio_norm=True)
    together = log_ratio(following, new, log_prob(following, old), old.mean, config)
    for row in range(3):
        one = slice(row, row + 1)
        alone_new, alone_old = StepDistribution(new.mean[one], 0.5), StepDistribution(old.mean[one], 0.5)
        alone = log_ratio(following[one], alone_new, log_prob(following[one], alone_old), alone_old.mean, config)
        torch.testing.assert_close(alone, together[one])


# The clipped loss

CLIP = 0.2


def by_loop(log_ratios: list[float], advantages: list[float], config: LossConfig, dt: float) -> float:
    total = 0.0
    for difference, advantage in zip(log_ratios, advantages, strict=True):
        bounded_advantage = max(-config.advantage_clip, min(config.advantage_clip, advantage))
        ratio = math.exp(difference)
        bounded_ratio = max(1 - config.clip, min(1 + config.clip, ratio))
        term = max(-bounded_advantage * ratio, -bounded_advantage * bounded_ratio)
        total += term / abs(dt) if config.ratio_norm else term
    return total


@given(
    st.lists(st.tuples(st.floats(-2, 2, width=32), st.floats(-9, 9, width=32)), min_size=1, max_size=8), st.booleans()
)
def test_the_loss_is_the_sum_of_a_plain_loop(pairs: list[tuple[float, float]], ratio_norm: bool):
    config = LossConfig(clip=CLIP, ratio_norm=ratio_norm)
    differences, advantages = (list(column) for column in zip(*pairs, strict=True))
    got = clipped_policy_loss(torch.tensor(differences), torch.tensor(advantages), config, DT)
    assert got.loss.item() == pytest.approx(by_loop(differences, advantages, config, DT), rel=1e-5, abs=1e-4)
    assert got.log_ratio_B.tolist() == differences


def slope(difference: float, advantage: float) -> float:
    difference_B = torch.tensor([difference], requires_grad=True)
    clipped_policy_loss(difference_B, torch.tensor([advantage]), LossConfig(clip=CLIP), DT).loss.backward()
    assert difference_B.grad is not None
    return difference_B.grad.item()


@pytest.mark.parametrize(
    ("difference", "advantage", "sign"),
    [
        (0.0, 1.0, -1),  # a better image than its group: raise its probability
        (0.0, -1.0, 1),
        (0.5, 1.0, 0),  # raised enough
        (-0.5, -1.0, 0),  # lowered enough
        (-0.5, 1.0, -1),  # moved the wrong way: still pulled back
        (0.5, -1.0, 1),
        (0.0, 0.0, 0),
    ],
)
def test_the_gradient_points_towards_better_images(difference: float, advantage: float, sign: int):
    assert math.copysign(1, slope(difference, advantage)) * (slope(difference, advantage) != 0) == sign


def test_at_ratio_one_the_gradient_is_minus_the_clamped_advantage():
    assert slope(0.0, 2.5) == pytest.approx(-2.5)
    assert slope(0.0, 40.0) == pytest.approx(-5.0)
    assert slope(0.0, -40.0) == pytest.approx(5.0)


def test_clipped_counts_ratios_outside_the_range():
    differences = torch.tensor([0.0, 0.1, -0.1, 0.3, -0.3])
    got = clipped_policy_loss(differences, torch.ones(5), LossConfig(clip=CLIP), DT)
    assert got.clipped_B.tolist() == [False, False, False, True, True]


def test_a_descent_step_on_the_velocity_raises_the_probability_of_a_good_image():
    x, v = noise(0), noise(1).requires_grad_()
    old = STEPS["cps"](x, v.detach(), T, S, LEVEL)
    following = old.mean + old.std * noise(2)
    before = log_prob(following, old)
    advantage = torch.tensor([1.0, -1.0, 0.0])
    difference = log_ratio(following, STEPS["cps"](x, v, T, S, LEVEL), before, old.mean, LossConfig())
    clipped_policy_loss(difference, advantage, LossConfig(), DT).loss.backward()
    assert v.grad is not None
    moved = STEPS["cps"](x, v.detach() - 0.1 * v.grad, T, S, LEVEL)
    change = (log_prob(following, moved) - before).tolist()
    assert change[0] > 0 > change[1]
    assert change[2] == 0


def test_no_image_gives_no_loss():
    got = clipped_policy_loss(torch.zeros(0, requires_grad=True), torch.zeros(0), LossConfig(), DT)
    assert got.loss.item() == 0
    got.loss.backward()


# KL to the frozen model


def two_policies(kind: str) -> tuple[StepDistribution, StepDistribution, torch.Tensor, torch.Tensor]:
    x, v = noise(0), noise(1)
    v_reference = v + 0.3 * noise(2)
    return STEPS[kind](x, v, T, S, LEVEL), STEPS[kind](x, v_reference, T, S, LEVEL), v, v_reference


@pytest.mark.parametrize("kind", ["flow_sde", "cps"])
def test_kl_is_torchs_divergence_averaged_over_the_elements(kind: str):
    new, reference, v, v_reference = two_policies(kind)
    exact = mean_of_each(kl_divergence(Normal(new.mean, new.std), Normal(reference.mean, reference.std)))
    torch.testing.assert_close(kl_to_reference(new, reference, v, v_reference, DT, "gaussian"), exact)
    torch.testing.assert_close(kl_to_reference(new, reference, v, v_reference, DT, "flow_grpo"), exact * (T - S))


def test_the_flow_grpo_kl_divides_by_sigma_squared():
    """The reference code's form of Flow-SDE: the step's noise without its factor |dt|."""
    new, reference, v, v_reference = two_policies("flow_sde")
    sigma = LEVEL * math.sqrt(T / (1 - T))
    expected = mean_of_each((new.mean - reference.mean) ** 2) / (2 * sigma**2)
    torch.testing.assert_close(kl_to_reference(new, reference, v, v_reference, DT, "flow_grpo"), expected)


def test_the_velocity_kl_is_the_mean_squared_difference():
    new, reference, v, v_reference = two_policies("cps")
    expected = mean_of_each((v - v_reference) ** 2)
    torch.testing.assert_close(kl_to_reference(new, reference, v, v_reference, DT, "velocity"), expected)


@pytest.mark.parametrize("form", ["gaussian", "flow_grpo", "velocity"])
def test_the_kl_pulls_the_current_policy_towards_the_reference(form: str):
    x, v = noise(0), noise(1).requires_grad_()
    v_reference = v.detach() + 0.3 * noise(2)
    new, reference = (STEPS["cps"](x, velocity, T, S, LEVEL) for velocity in (v, v_reference))
    kl_to_reference(new, reference, v, v_reference, DT, form).sum().backward()
    assert v.grad is not None
    pull = v_reference - v.detach()
    aligned = torch.cosine_similarity(-v.grad.flatten(), pull.flatten(), dim=0)
    assert aligned.item() == pytest.approx(1, abs=1e-4)


def test_without_weight_no_reference_is_needed():
    assert not uses_reference(KLConfig(beta=0))
    assert uses_reference(KLConfig(beta=0.04))
