"""The flow stage of the tiny world's pretraining: noise levels, the auxiliary naming of patches, the learning rate."""

import math

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

from tiny_world.pretrain.flow import (
    Naming,
    by_patch,
    hidden_patches,
    noise_levels,
    task_shares,
    velocity_loss,
)
from tiny_world.pretrain.optimizers import rate
from tiny_world.prompts import WORLDS
from tiny_world.scenes import names

pytestmark = pytest.mark.unit


@pytest.fixture
def transformer() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )


def a_batch(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 4, 8, 8, generator=generator),
        torch.randn(count, 5, 12, generator=generator),
        torch.randn(count, 12, generator=generator),
    )


def test_noise_levels_are_three_logit_normals_of_equal_share():
    logits = torch.logit(noise_levels(30_000, torch.Generator().manual_seed(0)).double()).view(3, 10_000)
    assert logits.mean(1).tolist() == pytest.approx([2.0, 0.6, -0.2], abs=0.05)
    assert logits.std(1).tolist() == pytest.approx([1.0] * 3, abs=0.05)


@pytest.mark.parametrize("count", [1, 2, 64])
def test_there_is_a_noise_level_for_each_picture_of_any_batch(count: int):
    assert noise_levels(count, torch.Generator().manual_seed(0)).shape == (count,)


def test_a_cell_is_named_by_the_patch_that_holds_it():
    cells = np.arange(64).reshape(8, 8)
    assert by_patch(cells, 2).shape == (16, 4)
    assert by_patch(cells, 2)[5].tolist() == [18, 19, 26, 27]  # second row, second column of patches


def test_an_untrained_head_of_no_preference_costs_the_log_of_the_names(transformer: SD3Transformer2DModel):
    world = WORLDS["small"]
    naming = Naming(transformer, world)
    torch.nn.init.zeros_(naming.head[-1].weight)
    torch.nn.init.zeros_(naming.head[-1].bias)
    contents = torch.randint(names(world), (2, 16, 4))
    assert naming.loss(torch.randn(2, 16, 16), contents).item() == pytest.approx(math.log(names(world)), rel=1e-5)


def test_naming_teaches_the_blocks_before_the_last_and_leaves_the_last_alone(
    transformer: SD3Transformer2DModel,
):
    hidden = hidden_patches(transformer)
    naming = Naming(transformer, WORLDS["small"])
    x0, tokens, pooled = a_batch(2)
    velocity_loss(transformer, x0, tokens, pooled, torch.Generator().manual_seed(2))
    assert hidden[0].shape == (2, 16, 16)
    naming.loss(hidden[0], torch.randint(21, (2, 16, 4))).backward()
    first, _, last = transformer.transformer_blocks
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in first.parameters())
    assert all(p.grad is None for p in last.parameters())


def test_the_rate_warms_up_stays_and_falls_to_zero():
    assert rate(0, 1000, cooldown=0.5) == pytest.approx(1 / 200)
    assert rate(300, 1000, cooldown=0.5) == 1.0
    assert rate(750, 1000, cooldown=0.5) == pytest.approx(0.5)
    assert rate(1000, 1000, cooldown=0.5) == 0.0


def test_shares_add_up_and_singles_are_their_share_of_shapes_and_of_signs():
    share = task_shares(signs=0.8, singles=0.3)
    signs = share["sign"] + share["single_letter"]
    assert signs == pytest.approx(0.8)
    assert sum(share.values()) - signs == pytest.approx(1.0)
    assert share["single_object"] == pytest.approx(0.3)
    assert share["single_letter"] == pytest.approx(0.3 * signs)
    assert share["color_attr"] / share["colors"] == pytest.approx(2.8)
