"""Muon: the step is the nearest orthogonal matrix of the averaged gradient."""

import pytest
import torch

from tiny_world.pretrain.muon import Muon, orthogonalise
from tiny_world.pretrain.optimizers import muon_and_adamw, take_step

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    for matrix, found in zip(matrices, orthogonalise(matrices), strict=True):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        sure = s / s.norm() > 0.05  # five iterations lift small singular values only part of the way
        in_its_basis = u.T @ found @ vh.T
        lifted = in_its_basis.diagonal()
        assert ((lifted[sure] > 0.6) & (lifted[sure] < 1.3)).all()
        assert (in_its_basis - lifted.diag()).abs().max() < 1e-4


def test_a_step_follows_the_averaged_gradient_with_the_promised_size():
    generator = torch.Generator().manual_seed(1)
    matrix = torch.nn.Parameter(torch.zeros(16, 32))
    tool = Muon([matrix], lr=0.01, momentum=0.9)
    first, second = torch.randn(2, 16, 32, generator=generator)
    average = torch.zeros(16, 32)
    expected = torch.zeros(16, 32)
    for gradient in (first, second):
        matrix.grad = gradient.clone()
        tool.step()
        average = 0.9 * average + 0.1 * gradient
        u, _, vh = torch.linalg.svd(0.1 * gradient + 0.9 * average, full_matrices=False)
        expected -= 0.01 * 0.2 * 32**0.5 * (u @ vh)
    cosine = torch.nn.functional.cosine_similarity(matrix.detach().flatten(), expected.flatten(), dim=0)
    assert cosine > 0.98
    assert matrix.detach().norm().item() == pytest.approx(expected.norm().item(), rel=0.2)


def test_matrices_without_a_gradient_stay():
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    Muon([matrix], lr=0.1).step()
    assert torch.equal(matrix, torch.ones(4, 4))


def test_matrices_of_the_blocks_go_to_muon_and_every_parameter_to_one_optimizer():
    model = torch.nn.ModuleDict({"embedding": torch.nn.Linear(4, 8), "blocks": torch.nn.Linear(8, 8)})
    head = torch.nn.Linear(8, 2)
    muon, adamw = (
        [id(parameter) for group in tool.param_groups for parameter in group["params"]]
        for tool in muon_and_adamw(model.named_parameters(), "blocks", head.parameters(), 1e-3)
    )
    assert muon == [id(model["blocks"].weight)]
    assert sorted(adamw) == sorted(
        id(parameter) for parameter in (*model["embedding"].parameters(), model["blocks"].bias, *head.parameters())
    )


def test_a_step_moves_what_every_optimizer_holds_at_the_rate_given_and_clears_gradients():
    first, second = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    tools = [torch.optim.SGD([first], lr=9.0), torch.optim.SGD([second], lr=9.0)]
    (first.sum() + 2 * second.sum()).backward()
    take_step(tools, 0.1)
    torch.testing.assert_close(first.detach(), torch.full((3,), 0.9))
    torch.testing.assert_close(second.detach(), torch.full((3,), 0.8))
    assert first.grad is None
    assert second.grad is None
