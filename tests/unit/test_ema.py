import pytest
import torch

from trainer.ema import MovingAverage

pytestmark = pytest.mark.unit


def parameters(*values: float) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor([value])) for value in values]


def averages(ema: MovingAverage) -> list[float]:
    return [mean.item() for mean in ema.average]


def test_the_average_by_hand():
    weights = parameters(0.0, 10.0)
    ema = MovingAverage(weights, decay=0.9)
    expected = [0.0, 10.0]
    for n in range(200):
        decay = min(0.9, (1 + n) / (10 + n))
        for index, weight in enumerate(weights):
            weight.data += 1 + n % 3
            expected[index] = decay * expected[index] + (1 - decay) * weight.item()
        ema.update()
    assert averages(ema) == pytest.approx(expected, rel=1e-4)
    assert ema.updates == 200


@pytest.mark.parametrize(
    ("updates", "decay"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (79, 80 / 89), (80, 0.9), (10_000, 0.9)]
)
def test_the_decay_grows_to_its_bound(updates: int, decay: float):
    weights = parameters(0.0)
    ema = MovingAverage(weights, decay=0.9)
    ema.restore([torch.zeros(1)], updates)
    weights[0].data.fill_(1.0)
    ema.update()
    assert averages(ema) == pytest.approx([1 - decay])


def test_the_average_starts_at_the_weights_and_does_not_follow_them():
    weights = parameters(3.0)
    ema = MovingAverage(weights, decay=0.9)
    weights[0].data.fill_(5.0)
    assert averages(ema) == [3.0]


def test_applied_swaps_the_weights_and_brings_them_back():
    weights = parameters(3.0)
    ema = MovingAverage(weights, decay=0.9)
    weights[0].data.fill_(5.0)
    storage = weights[0].data_ptr()
    with ema.applied():
        assert weights[0].item() == 3.0
        weights[0].data.fill_(99.0)  # what happens to the borrowed weights does not reach the average
    assert weights[0].item() == 5.0
    assert weights[0].data_ptr() == storage
    assert averages(ema) == [3.0]


def test_applied_brings_the_weights_back_after_an_error():
    weights = parameters(3.0)
    ema = MovingAverage(weights, decay=0.9)
    weights[0].data.fill_(5.0)
    with pytest.raises(RuntimeError, match="evaluation"), ema.applied():
        raise RuntimeError("evaluation failed")
    assert weights[0].item() == 5.0


def test_an_optimizer_goes_on_after_applied():
    weights = parameters(1.0)
    optimizer = torch.optim.SGD(weights, lr=1.0)
    ema = MovingAverage(weights, decay=0.9)
    with ema.applied():
        pass
    weights[0].sum().backward()
    optimizer.step()
    assert weights[0].item() == 0.0


def test_the_average_carries_no_gradient():
    ema = MovingAverage(parameters(1.0), decay=0.9)
    ema.update()
    assert not ema.average[0].requires_grad


def test_restore_wants_as_many_tensors_as_there_are():
    with pytest.raises(ValueError, match="shorter"):
        MovingAverage(parameters(1.0, 2.0), decay=0.9).restore([torch.zeros(1)], 0)
