"""Log-probabilities, the clipped policy loss, and the KL to the frozen model.

Shapes: B images of one batch at one denoising step; latents are (B, C, H, W) and every reduction over their
elements is a mean, so that losses do not depend on the latents' size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import KLConfig, LossConfig
from trainer.steps import StepDistribution


def per_image_mean(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.flatten(1).mean(1)


def log_prob(next_BCHW: Tensor, step: StepDistribution, scale: str = "full") -> Tensor:
    """log p(next) under N(mean, std^2), averaged over the latent elements: (B,).

    ``flow_grpo`` is the reference's scale for CPS: it drops every constant and 1 / (2 std^2) with them.
    Raises ValueError for a deterministic step, which has no density.
    """
    if step.std <= 0:
        raise ValueError("a deterministic step has no log-probability and must not be trained on")
    squared = per_image_mean((next_BCHW.float() - step.mean).square())
    if scale == "flow_grpo":
        return -squared
    return -squared / (2 * step.std**2) - math.log(step.std) - 0.5 * math.log(2 * math.pi)


def log_ratio(
    next_BCHW: Tensor, new: StepDistribution, old_log_prob_B: Tensor, old_mean_BCHW: Tensor, config: LossConfig
) -> Tensor:
    """log p_new(next) - log p_old(next) per image: (B,).

    With ``ratio_norm`` (GRPO-Guard, arXiv 2510.22319) the bias -mean(dmu^2) / (2 std^2) is taken out and the
    rest multiplied by std, per image. It is defined on the full density.
    """
    difference = log_prob(next_BCHW, new, config.log_prob) - old_log_prob_B
    if not config.ratio_norm:
        return difference
    bias = per_image_mean((new.mean - old_mean_BCHW).square()) / (2 * new.std**2)
    return (difference + bias) * new.std


def kl_to_reference(
    new: StepDistribution, reference: StepDistribution, v: Tensor, v_reference: Tensor, dt: float, form: str
) -> Tensor:
    """KL per image in one of three conventions: (B,).

    ``gaussian``: mean((mu - mu_ref)^2) / (2 std^2), exact per element. ``flow_grpo``: the same times |dt|, as the
    reference code divides by sigma^2 where std^2 = sigma^2 |dt|. ``velocity``: mean((v - v_ref)^2).
    """
    if form == "velocity":
        return per_image_mean((v.float() - v_reference.float()).square())
    gaussian = per_image_mean((new.mean - reference.mean).square()) / (2 * new.std**2)
    return gaussian * abs(dt) if form == "flow_grpo" else gaussian


@dataclass(frozen=True)
class PolicyLoss:
    """``loss`` is the sum over the batch's images (the caller divides by the update's number of terms)."""

    loss: Tensor
    log_ratio_B: Tensor
    clipped_B: Tensor


def clipped_policy_loss(log_ratio_B: Tensor, advantage_B: Tensor, config: LossConfig, dt: float) -> PolicyLoss:
    """Sum over images of max(-A r, -A clip(r, 1 - c, 1 + c)), A clamped to [-advantage_clip, advantage_clip].

    With ``ratio_norm`` each term is divided by |dt|. Advantages must be finite: images without a score are left out
    before this point.
    """
    advantage = advantage_B.clamp(-config.advantage_clip, config.advantage_clip)
    ratio = log_ratio_B.exp()
    bounded = ratio.clamp(1 - config.clip, 1 + config.clip)
    terms = torch.maximum(-advantage * ratio, -advantage * bounded)
    if config.ratio_norm:
        terms = terms / abs(dt)
    outside = (ratio.detach() - 1).abs() > config.clip
    return PolicyLoss(terms.sum(), log_ratio_B.detach(), outside)


def uses_reference(config: KLConfig) -> bool:
    return config.beta > 0
