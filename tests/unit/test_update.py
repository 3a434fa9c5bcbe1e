"""Policy updates on a tiny random model: what they leave alone, what they move, and where to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from trainer.config import KLConfig, LossConfig, OptimizerConfig, RolloutConfig
from trainer.ema import MovingAverage
from trainer.models.sd3 import SD3
from trainer.rollout import Rollout, roll_out
from trainer.steps import STEPS
from trainer.update import PolicyUpdate, TrainingFailure, UpdateStatistics

pytestmark = pytest.mark.unit

Make = Callable[..., SD3]

PROMPTS = ["a photo of a red circle", "a photo of two crosses"]
ADVANTAGES = np.array([[1.0, -0.5, -0.5], [0.8, 0.4, -1.2]])


@dataclasses.dataclass
class Setting:
    """A model with its update, and two groups of three images rolled out with it."""

    model: SD3
    update: PolicyUpdate
    average: MovingAverage
    rollouts: list[Rollout]
    rollout_config: RolloutConfig

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.lora_parameters()]

    def run(self, advantages: np.ndarray = ADVANTAGES) -> UpdateStatistics:
        return self.update.run(self.rollouts, advantages)


def prepare(
    model: SD3,
    loss: LossConfig | None = None,
    *,
    batches: int = 2,
    optimizer: dict[str, Any] | None = None,
    **rollout: Any,
) -> Setting:
    loss = loss or LossConfig()
    per_batch = 2 // batches
    settings = {"groups": 2, "group_size": 3, "steps": 4, "noise_level": 0.7, "groups_per_batch": per_batch} | rollout
    config = RolloutConfig(**settings)
    tuning = OptimizerConfig(**({"updates_per_epoch": 1, "ema_every": 1, "learning_rate": 1e-3} | (optimizer or {})))
    average = MovingAverage(model.lora_parameters(), tuning.ema_decay)
    empty = model.encode([""]) if config.guidance > 1 else None
    rollouts = []
    for first in range(0, 2, per_batch):
        slots = range(first, first + per_batch)
        text = model.encode([PROMPTS[slot] for slot in slots])
        steps = range(config.steps - 1)
        rollouts.append(roll_out(model, text, empty, slots, config, loss.log_prob, steps, seed=3, epoch=0))
    return Setting(model, PolicyUpdate(model, average, config, loss, tuning, epochs=4), average, rollouts, config)


def differs(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# The ratio before the first step


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("cps", LossConfig()),
        ("flow_sde", LossConfig()),
        ("cps", LossConfig(log_prob="flow_grpo")),
        ("flow_sde", LossConfig(ratio_norm=True)),
    ],
)
def test_the_first_update_replays_at_ratio_one(
    make_model: Make, kind: str, loss: LossConfig, guidance: float, batches: int
):
    setting = prepare(make_model(stirred=True), loss, step=kind, guidance=guidance, batches=batches)
    statistics = setting.run()
    assert statistics.first_log_ratio < 1e-6
    assert statistics.metrics()["policy/clip_fraction"] == 0
    assert statistics.terms == 6 * 3


def test_half_precision_replays_at_ratio_one_too(make_model: Make):
    setting = prepare(make_model(stirred=True, dtype="bfloat16"))
    assert setting.run().first_log_ratio < 1e-6


def test_the_second_optimizer_step_is_off_the_policy_and_not_the_first(make_model: Make):
    setting = prepare(make_model(stirred=True), optimizer={"updates_per_epoch": 2})
    statistics = setting.run()
    assert statistics.first_log_ratio < 1e-6
    assert statistics.absolute_log_ratio > 1e-4
    assert setting.update.steps_done == len(statistics.gradient_norms) == 2


# The gradient


def gradient_of(setting: Setting, advantages: np.ndarray) -> torch.Tensor:
    """What the optimizer is handed."""
    taken: list[torch.Tensor] = []

    def step() -> None:
        taken.extend(parameter.grad.flatten().clone() for parameter in setting.model.lora_parameters())

    setting.update.optimizer.step = step
    setting.run(advantages)
    return torch.cat(taken)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_gradient_is_that_of_the_plain_policy_gradient(make_model: Make, guidance: float):
    """At ratio one: - mean over images and steps of A times the gradient of the mean log-density."""
    setting = prepare(make_model(stirred=True), optimizer={"grad_clip": 1e9}, guidance=guidance)
    got = gradient_of(setting, ADVANTAGES)

    model, total = setting.model, torch.zeros(())
    for rollout, advantages in zip(setting.rollouts, ADVANTAGES, strict=True):
        for move in rollout.transitions:
            v = model.velocity(move.x_BCHW, move.t, rollout.text, rollout.unconditional, guidance)
            mean, std = STEPS["cps"](move.x_BCHW, v, move.t, move.s, 0.7)
            density = Normal(mean, std).log_prob(move.next_BCHW).mean(dim=(1, 2, 3))
            total = total - (torch.from_numpy(advantages).float() * density).sum()
    expected = torch.autograd.grad(total / 18, model.lora_parameters())
    flat = torch.cat([gradient.flatten() for gradient in expected])
    torch.testing.assert_close(got, flat, rtol=1e-3, atol=1e-5 * flat.abs().max().item())


def test_the_gradient_does_not_depend_on_how_groups_are_batched(make_model: Make):
    one, two = (
        gradient_of(prepare(make_model(stirred=True), batches=batches, optimizer={"grad_clip": 1e9}), ADVANTAGES)
        for batches in (1, 2)
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * one.abs().max().item())


def test_the_gradient_is_clipped_to_its_norm_and_the_norm_before_is_reported(make_model: Make):
    free, bounded = (prepare(make_model(stirred=True), optimizer={"grad_clip": bound}) for bound in (1e9, 0.01))
    whole, clipped = gradient_of(free, ADVANTAGES), gradient_of(bounded, ADVANTAGES)
    assert whole.norm().item() > 0.02
    torch.testing.assert_close(clipped, whole / whole.norm() * 0.01, rtol=1e-3, atol=1e-7)
    reported = prepare(make_model(stirred=True), optimizer={"grad_clip": 0.01}).run()
    assert reported.gradient_norms == pytest.approx([whole.norm().item()], rel=1e-4)


def test_gradients_do_not_carry_over_to_the_next_step(make_model: Make):
    setting = prepare(make_model(stirred=True))
    setting.update.optimizer.step = lambda: None
    first, second = setting.run(), setting.run()
    assert first.gradient_norms == second.gradient_norms


def test_an_update_raises_good_images_and_lowers_bad_ones(make_model: Make):
    setting = prepare(make_model(stirred=True), optimizer={"learning_rate": 1e-4, "weight_decay": 0})
    model = setting.model
    setting.run()
    gained = 0.0
    for rollout, advantages in zip(setting.rollouts, ADVANTAGES, strict=True):
        for move in rollout.transitions:
            with torch.no_grad():
                v = model.velocity(move.x_BCHW, move.t, rollout.text, None, 1.0)
            mean, std = STEPS["cps"](move.x_BCHW, v, move.t, move.s, 0.7)
            now = Normal(mean, std).log_prob(move.next_BCHW).mean(dim=(1, 2, 3))
            gained += float(((now - move.log_prob_B).numpy() * advantages).sum())
    assert gained > 0


# Images without a score


def test_an_image_without_a_score_has_no_influence_at_all(make_model: Make):
    """Its trajectory may be anything: the weights come out the same to the bit."""
    advantages = ADVANTAGES.copy()
    advantages[1, 2] = np.nan
    outcomes = []
    for spoil in (False, True):
        setting = prepare(make_model(stirred=True))
        if spoil:
            for move in setting.rollouts[1].transitions:
                move.next_BCHW[2] += 3.0
                move.log_prob_B[2] = -50.0
        statistics = setting.run(advantages)
        assert statistics.terms == 5 * 3
        assert statistics.first_log_ratio < 1e-6
        outcomes.append(setting.weights())
    assert not differs(*outcomes)


def test_missing_images_do_not_weaken_the_others(make_model: Make):
    """The mean is over the images that count: with group 2 missing, group 1 alone gives the same gradient."""
    advantages = ADVANTAGES.copy()
    advantages[1] = np.nan
    whole = prepare(make_model(stirred=True), optimizer={"grad_clip": 1e9})
    alone = prepare(make_model(stirred=True), optimizer={"grad_clip": 1e9})
    alone.rollouts = alone.rollouts[:1]
    torch.testing.assert_close(gradient_of(whole, advantages), gradient_of(alone, advantages[:1]))


def test_an_epoch_without_any_score_takes_no_step(make_model: Make):
    setting = prepare(make_model(stirred=True))
    before = setting.weights()
    statistics = setting.run(np.full((2, 3), np.nan))
    assert setting.update.steps_done == setting.average.updates == statistics.terms == 0
    assert not differs(before, setting.weights())
    assert statistics.metrics()["policy/loss"] == 0


# KL to the frozen model


def test_at_the_start_the_kl_is_zero(make_model: Make):
    setting = prepare(make_model(), LossConfig(kl=KLConfig(beta=0.04)))
    assert setting.run().kl == 0


@pytest.mark.parametrize("kind", ["cps", "flow_sde"])
@pytest.mark.parametrize("form", ["gaussian", "flow_grpo", "velocity"])
def test_the_kl_is_that_of_the_model_without_its_lora(make_model: Make, kind: str, form: str):
    setting = prepare(make_model(stirred=True), LossConfig(kl=KLConfig(beta=0.04, form=form)), step=kind)
    frozen, current, total = make_model(), make_model(stirred=True), 0.0
    for rollout in setting.rollouts:
        for move in rollout.transitions:
            with torch.no_grad():
                v, v_frozen = (m.velocity(move.x_BCHW, move.t, rollout.text, None, 1.0) for m in (current, frozen))
            new, old = (STEPS[kind](move.x_BCHW, u, move.t, move.s, 0.7) for u in (v, v_frozen))
            exact = kl_divergence(Normal(new.mean, new.std), Normal(old.mean, old.std))
            terms = {"gaussian": exact, "flow_grpo": exact * (move.t - move.s), "velocity": (v - v_frozen) ** 2}
            total += terms[form].mean(dim=(1, 2, 3)).sum().item()
    statistics = setting.run()
    assert total > 0
    assert statistics.kl == pytest.approx(total, rel=1e-4)
    assert statistics.metrics()["policy/kl"] == pytest.approx(total / 18, rel=1e-4)


@pytest.mark.parametrize("form", ["gaussian", "flow_grpo", "velocity"])
def test_the_kl_alone_pulls_the_policy_back(make_model: Make, form: str):
    """All advantages 0: nothing but the KL moves the weights, and it falls."""
    loss = LossConfig(kl=KLConfig(beta=0.5, form=form))
    setting = prepare(make_model(stirred=True), loss, optimizer={"weight_decay": 0, "learning_rate": 3e-3})
    kl = [setting.run(np.zeros((2, 3))).kl for _ in range(4)]
    assert kl == sorted(kl, reverse=True)
    assert kl[-1] < 0.99 * kl[0]


def test_the_reference_runs_only_where_beta_asks_for_it(make_model: Make, monkeypatch: pytest.MonkeyPatch):
    counts = {}
    for beta in (0.0, 0.04):
        setting = prepare(make_model(stirred=True), LossConfig(kl=KLConfig(beta=beta)))
        forwards: list[bool] = []
        velocity = setting.model.velocity
        monkeypatch.setattr(
            setting.model,
            "velocity",
            lambda *given, velocity=velocity, forwards=forwards: (
                forwards.append(torch.is_grad_enabled()),
                velocity(*given),
            )[1],
        )
        setting.run()
        counts[beta] = (forwards.count(True), forwards.count(False))
    assert counts == {0.0: (6, 0), 0.04: (6, 6)}


# Bookkeeping


def test_the_average_follows_every_nth_optimizer_step(make_model: Make):
    setting = prepare(make_model(stirred=True), optimizer={"updates_per_epoch": 2, "ema_every": 3})
    for _ in range(3):
        setting.run()
    assert setting.update.steps_done == 6
    assert setting.average.updates == 2


def test_only_the_lora_moves(make_model: Make):
    setting = prepare(make_model(stirred=True))
    before = {name: value.clone() for name, value in setting.model.transformer.state_dict().items()}
    setting.run()
    moved = {
        name for name, value in setting.model.transformer.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved
    assert all("lora_" in name for name in moved)


def test_ratio_norm_divides_the_loss_by_the_time_step(make_model: Make):
    """At ratio one each term is -A / |dt|."""
    setting = prepare(make_model(stirred=True), LossConfig(ratio_norm=True))
    advantages = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, -0.5]])
    moves = setting.rollouts[0].transitions
    expected = sum(-2.5 / (move.t - move.s) for move in moves)
    assert setting.run(advantages).loss == pytest.approx(expected, rel=1e-4)


def test_a_value_that_is_no_number_stops_the_run_and_says_where(make_model: Make):
    setting = prepare(make_model(stirred=True))
    setting.rollouts[1].transitions[1].log_prob_B[0] = float("nan")
    before, t = setting.weights(), setting.rollouts[1].transitions[1].t
    with pytest.raises(TrainingFailure, match=f"loss is nan at t = {t:.4f}, optimizer step 0"):
        setting.run()
    assert not differs(before, setting.weights())


def test_metrics_are_means_over_the_terms():
    statistics = UpdateStatistics(
        terms=4, loss=2.0, kl=1.0, clipped=3, absolute_log_ratio=0.4, first_log_ratio=0.1, gradient_norms=[1.0, 3.0]
    )
    assert statistics.metrics() == {
        "policy/loss": 0.5,
        "policy/kl": 0.25,
        "policy/clip_fraction": 0.75,
        "policy/abs_log_ratio": 0.1,
        "policy/first_log_ratio": 0.1,
        "policy/gradient_norm": 2.0,
    }


# The learning rate


def test_the_learning_rate_falls_to_zero_over_the_runs_steps_or_stays(make_model: Make):
    falling = prepare(make_model(), optimizer={"decay": True, "updates_per_epoch": 2})
    rates = []
    for _ in range(4):
        rates.append(falling.update.learning_rate)
        falling.run()
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert falling.update.learning_rate == 0.0
    assert falling.update.optimizer.param_groups[0]["lr"] == pytest.approx(0.125e-3)  # of the eighth of eight steps
    kept = prepare(make_model())
    kept.run()
    assert kept.update.learning_rate == 1e-3
