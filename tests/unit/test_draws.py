import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.draws import key, stream

pytestmark = pytest.mark.unit

parts = st.lists(st.integers(0, 10**9) | st.sampled_from(["prompt", "image", "window"]), max_size=4)


def test_keys_are_the_same_on_every_machine():
    """A resumed run depends on it. The figures are the upper 63 bits of ``printf 7/image/3/0/11 | b2sum -l 64``."""
    assert key(0) == 4761921975702974394
    assert key(7, "image", 3, 0, 11) == 1953656711721259589


@given(st.integers(0, 2**63), parts)
def test_a_key_fits_every_generators_seed(seed: int, purpose: list[int | str]):
    assert 0 <= key(seed, *purpose) < 2**63


@given(st.integers(0, 9), parts)
def test_equal_parts_give_equal_draws(seed: int, purpose: list[int | str]):
    first, second = stream(seed, *purpose), stream(seed, *purpose)
    assert [first.random() for _ in range(3)] == [second.random() for _ in range(3)]


def test_every_part_counts():
    keys = {
        key(seed, purpose, epoch, slot, image)
        for seed in range(3)
        for purpose in ("image", "prompt")
        for epoch in range(4)
        for slot in range(12)
        for image in range(12)
    }
    assert len(keys) == 3 * 2 * 4 * 12 * 12


def test_neighbouring_keys_are_unrelated():
    """Seeds that differ by one bit must not give noise that differs by little."""
    flips = [(key(0, "image", 0, slot) ^ key(0, "image", 0, slot + 1)).bit_count() for slot in range(500)]
    assert 30 < sum(flips) / len(flips) < 33
