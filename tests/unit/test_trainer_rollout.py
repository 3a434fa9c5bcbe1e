"""Windows, trajectories and their noise on a tiny random model."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from trainer.config import LossConfig, RolloutConfig, Solver, WindowConfig
from trainer.draws import key
from trainer.models.sd3 import SD3
from trainer.policy_loss import clipped_policy_loss, log_prob, log_ratio
from trainer.rollout import ImageNoise, Rollout, credited_by_image, roll_out, sample, window
from trainer.steps import STEPS, StepDistribution

pytestmark = pytest.mark.unit

Make = Callable[..., SD3]

PROMPTS = ["a photo of a red circle", "a photo of two crosses"]
FIVE_STEPS: dict[str, Any] = {"groups": 2, "group_size": 3, "steps": 5, "noise_level": 0.7}


def draw(model: SD3, slots: Sequence[int] = (0, 1), trained: range | None = None, **settings: Any) -> Rollout:
    config = RolloutConfig(**(FIVE_STEPS | settings))
    empty = model.encode([""]) if config.guidance > 1 else None
    text = model.encode([PROMPTS[slot] for slot in slots])
    steps = range(config.steps - 1) if trained is None else trained
    return roll_out(model, text, empty, slots, config, "full", steps, seed=7, epoch=2)


# The window


def test_without_a_window_every_step_but_the_last_is_trained():
    assert window(RolloutConfig(steps=10), seed=0, epoch=3) == range(9)


def test_the_window_stays_inside_and_reaches_every_place():
    config = RolloutConfig(steps=10, window=WindowConfig(size=3, first=1, last=6))
    places = [window(config, seed=0, epoch=epoch) for epoch in range(200)]
    assert {place.start for place in places} == {1, 2, 3}
    assert all(len(place) == 3 and place.start >= 1 and place.stop <= 6 for place in places)


def test_the_window_is_one_draw_of_seed_and_epoch():
    config = RolloutConfig(steps=10, window=WindowConfig(size=2, last=9))
    epochs = range(40)
    first, second = ([window(config, seed, epoch) for epoch in epochs] for seed in (3, 3))
    assert first == second
    assert first != [window(config, 4, epoch) for epoch in epochs]


def test_all_groups_share_the_window(make_model: Make):
    model = make_model()
    place = window(RolloutConfig(**FIVE_STEPS, window=WindowConfig(size=2, last=4)), seed=0, epoch=1)
    sigmas = model.sigmas(5)
    for slots in ((0,), (1,), (0, 1)):
        transitions = draw(model, slots, place).transitions
        assert [(step.t, step.s) for step in transitions] == [(sigmas[k], sigmas[k + 1]) for k in place]


# Trajectories


@pytest.mark.parametrize("kind", ["cps", "flow_sde"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_trajectory_is_one_path_of_its_densities(make_model: Make, kind: str, guidance: float):
    model = make_model(stirred=True)
    rollout = draw(model, step=kind, guidance=guidance)
    assert rollout.slots == (0, 1)
    assert rollout.images.shape == (6, 64, 64, 3)
    assert rollout.images.dtype == np.uint8
    assert len(rollout.transitions) == 4
    for before, after in pairwise(rollout.transitions):
        assert torch.equal(before.next_BCHW, after.x_BCHW)
    for step in rollout.transitions:
        kept = (step.x_BCHW, step.next_BCHW, step.mean_BCHW, step.log_prob_B)
        assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in kept)
        assert step.log_prob_B.shape == (6,)
        # The noise that was drawn is standard normal, so the mean log-density is that of its own std.
        std = (step.next_BCHW - step.mean_BCHW).std().item()
        expected = Normal(0.0, std).entropy().item()
        assert -step.log_prob_B.mean().item() == pytest.approx(expected, abs=0.05)


def test_images_of_a_group_start_from_different_noise(make_model: Make):
    start = draw(make_model()).transitions[0].x_BCHW
    for a in range(6):
        for b in range(a):
            assert (start[a] - start[b]).std() > 1


def test_an_images_noise_belongs_to_its_slot_not_to_its_batch(make_model: Make):
    """The same images, however the groups are put into batches: what a resumed or a distributed run needs."""
    model = make_model(stirred=True)
    together, second = draw(model, (0, 1)), draw(model, (1,))
    assert torch.equal(together.transitions[0].x_BCHW[3:], second.transitions[0].x_BCHW)
    for whole, part in zip(together.transitions, second.transitions, strict=True):
        torch.testing.assert_close(whole.next_BCHW[3:], part.next_BCHW, rtol=1e-4, atol=1e-4)


def test_the_same_seed_and_epoch_repeat_a_rollout_to_the_bit(make_model: Make):
    model = make_model(stirred=True)
    first, second = draw(model), draw(model)
    np.testing.assert_array_equal(first.images, second.images)
    assert torch.equal(first.transitions[-1].next_BCHW, second.transitions[-1].next_BCHW)


def test_steps_outside_the_window_follow_the_ode(make_model: Make):
    model = make_model(stirred=True)
    rollout = draw(model, (0,), trained=range(2, 3))
    [step] = rollout.transitions
    sigmas, text = model.sigmas(5), model.encode(PROMPTS[:1]).expand(3)

    keys = [key(7, "image", 2, 0, image) for image in range(3)]
    x = ImageNoise(keys, model.latent_shape, model.device).draw()
    with torch.no_grad():
        for t, s in pairwise(sigmas[:3]):
            x = x + (s - t) * model.velocity(x, t, text, None, 1.0)
        torch.testing.assert_close(step.x_BCHW, x)
        x = step.next_BCHW
        for t, s in pairwise(sigmas[3:]):
            x = x + (s - t) * model.velocity(x, t, text, None, 1.0)
    assert np.abs(model.decode(x).astype(int) - rollout.images).max() <= 1


def test_with_an_empty_window_a_rollout_is_the_evaluations_sample(make_model: Make):
    model = make_model(stirred=True)
    rollout = draw(model, (0,), trained=range(0), guidance=4.0)
    keys = [key(7, "image", 2, 0, image) for image in range(3)]
    text, empty = model.encode(PROMPTS[:1]).expand(3), model.encode([""]).expand(3)
    np.testing.assert_array_equal(rollout.images, sample(model, text, empty, keys, 5, 4.0))
    assert rollout.transitions == ()


def test_the_solver_takes_the_deterministic_steps_alone(make_model: Make):
    model = make_model(stirred=True)
    euler, second = (draw(model, (0,), trained=range(1, 2), solver=solver) for solver in ("euler", "ab2"))
    # One step before the window, which is Euler's either way; then the same stochastic step, then three others.
    torch.testing.assert_close(euler.transitions[0].x_BCHW, second.transitions[0].x_BCHW, rtol=0, atol=0)
    torch.testing.assert_close(euler.transitions[0].next_BCHW, second.transitions[0].next_BCHW, rtol=0, atol=0)
    assert (euler.images != second.images).any()
    everywhere = [draw(model, (0,), solver=solver) for solver in ("euler", "ab2")]
    np.testing.assert_array_equal(everywhere[0].images, everywhere[1].images)


def test_ab2_comes_closer_to_the_exact_flow_in_as_many_steps(make_model: Make):
    model = make_model(stirred=True)
    text, keys = model.encode(PROMPTS[:1]).expand(3), [1, 2, 3]
    exact = sample(model, text, None, keys, 200, 1.0).astype(float)

    def error(solver: Solver) -> float:
        return np.abs(sample(model, text, None, keys, 8, 1.0, solver) - exact).mean()

    assert error("ab2") < 0.7 * error("euler")


def test_the_text_is_kept_row_by_row_for_the_replay(make_model: Make):
    model = make_model()
    rollout = draw(model, guidance=4.0)
    text = model.encode(PROMPTS)
    assert rollout.unconditional is not None
    assert len(rollout.text.tokens_BLD) == len(rollout.unconditional.tokens_BLD) == 6
    for row in range(6):
        assert torch.equal(rollout.text.pooled_BD[row], text.pooled_BD[row // 3])


def test_latents_are_float32_with_a_half_precision_model(make_model: Make):
    for step in draw(make_model(dtype="bfloat16", stirred=True)).transitions:
        kept = (step.x_BCHW, step.next_BCHW, step.mean_BCHW, step.log_prob_B)
        assert all(tensor.dtype == torch.float32 for tensor in kept)
        # Not merely stored as float32: none of them has been through half precision.
        assert not torch.equal(step.next_BCHW, step.next_BCHW.bfloat16().float())


def test_with_shared_noise_a_group_parts_ways_at_the_window(make_model: Make):
    shared = draw(make_model(stirred=True), trained=range(1, 3), shared_noise=True).transitions[0]
    group, other = shared.x_BCHW[:3], shared.x_BCHW[3:]
    torch.testing.assert_close(group, group[:1].expand_as(group), rtol=0, atol=0)
    assert not torch.allclose(group[0], other[0])
    assert not torch.allclose(shared.next_BCHW[0], shared.next_BCHW[1])


# Credit


@pytest.mark.parametrize("kind", ["cps", "flow_sde"])
def test_image_credit_is_the_mean_of_a_step_that_knew_the_final_image(make_model: Make, kind: str):
    """With the final image x0 and the predicted noise x1 as the model's view, the same step gives the same mean."""
    model = make_model(stirred=True)
    config = RolloutConfig(**FIVE_STEPS, step=kind, credit="image")
    rollout = roll_out(model, model.encode(PROMPTS), None, (0, 1), config, "full", range(4), seed=7, epoch=2)
    x0 = final_latents(model, rollout, config)
    for step in rollout.transitions:
        v = model.velocity(step.x_BCHW, step.t, rollout.text, None, 1.0)
        x1 = step.x_BCHW + (1 - step.t) * v
        informed = STEPS[kind]((1 - step.t) * x0 + step.t * x1, x1 - x0, step.t, step.s, config.noise_level)
        torch.testing.assert_close(step.next_BCHW, informed.mean, rtol=1e-4, atol=1e-4)


def test_credit_changes_neither_images_nor_states(make_model: Make):
    model = make_model(stirred=True)
    drawn, explained = draw(model, credit="noise"), draw(model, credit="image")
    assert np.array_equal(drawn.images, explained.images)
    for one, other in zip(drawn.transitions, explained.transitions, strict=True):
        assert torch.equal(one.x_BCHW, other.x_BCHW)
        assert torch.equal(one.mean_BCHW, other.mean_BCHW)
        assert not torch.equal(one.next_BCHW, other.next_BCHW)


@pytest.mark.parametrize("shared", [True, False])
def test_advantages_over_one_noise_cancel_the_models_own_prediction(shared: bool):
    """The update must come from the images. A prediction that is off by one amount for the whole group drops out of
    the gradient; one that is off image by image, as it can be where their noises differ, does not."""
    torch.manual_seed(0)
    t, s, shape = 0.9, 0.8, (6, 2, 4, 4)
    config = LossConfig(clip=1.0, ratio_norm=True)
    advantage = torch.tensor([1.0, 1.0, 0.5, -0.5, -1.0, -1.0])
    images = torch.randn(shape)
    mean, off = torch.randn(1, *shape[1:]).expand(shape), torch.randn(1 if shared else 6, *shape[1:])

    def gradient(predicted: torch.Tensor) -> torch.Tensor:
        """Of the loss, by a shift of all means, as a shared x_t and one set of weights move them."""
        shift = torch.zeros(1, *shape[1:], requires_grad=True)
        credited = credited_by_image(StepDistribution(mean, 0.7), s, predicted, images)
        old = log_prob(credited, StepDistribution(mean, 0.7))
        ratio = log_ratio(credited, StepDistribution(mean + shift, 0.7), old, mean, config)
        clipped_policy_loss(ratio, advantage, config, s - t).loss.backward()
        assert shift.grad is not None
        return shift.grad

    right = torch.randn(1, *shape[1:]).expand(shape)
    # By hand: -sum A (1 - s) image / (std * elements * |dt|), the prediction nowhere in it.
    expected = -(advantage.view(-1, 1, 1, 1) * (1 - s) * images).sum(0, keepdim=True) / (0.7 * 32 * (t - s))
    torch.testing.assert_close(gradient(right), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(gradient(right + off), expected, rtol=1e-4, atol=1e-5) is shared


@torch.no_grad()
def final_latents(model: SD3, rollout: Rollout, config: RolloutConfig) -> torch.Tensor:
    """Walks the trajectory again from its last stochastic state, with the noise of the images' own streams."""
    size = config.group_size
    keys = [key(7, "image", 2, slot, image) for slot in rollout.slots for image in range(size)]
    noises = ImageNoise(keys, model.latent_shape, model.device)
    for _ in range(len(rollout.transitions)):  # the start and all steps but the last stochastic one
        noises.draw()
    last = rollout.transitions[-1]
    v = model.velocity(last.x_BCHW, last.t, rollout.text, None, 1.0)
    step = STEPS[config.step](last.x_BCHW, v, last.t, last.s, config.noise_level)
    x = step.mean + step.std * noises.draw()
    return x - last.s * model.velocity(x, last.s, rollout.text, None, 1.0)
