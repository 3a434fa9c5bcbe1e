"""Advantages against hand computation with the statistics module, and by their properties."""

import math
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.advantages import EPS, advantages, normalise_groups, weighted_sum, zero_variance_fraction
from trainer.config import AdvantageConfig

pytestmark = pytest.mark.unit

GROUP = AdvantageConfig(statistics="group")
GLOBAL = AdvantageConfig(statistics="global")
NORMALISED = AdvantageConfig(aggregation="normalised")
EVERY = [GROUP, GLOBAL, NORMALISED]

each_config = pytest.mark.parametrize("config", EVERY, ids=["group", "global", "normalised"])

scores = st.integers(-40, 40).map(lambda n: n / 8)


@st.composite
def tables(draw: st.DrawFn, missing: bool = False) -> NDArray[np.float64]:
    """Rewards (S, G) whose groups all have some spread, some of them missing if asked."""
    slots, size = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    rows = draw(st.lists(st.lists(scores, min_size=size, max_size=size), min_size=slots, max_size=slots))
    table = np.array(rows)
    assume((table.std(axis=1) > 0.2).all())
    if missing:
        holes = draw(st.lists(st.booleans(), min_size=table.size, max_size=table.size))
        table[np.array(holes).reshape(table.shape)] = np.nan
    return table


def one_reward(table: NDArray[np.float64], config: AdvantageConfig) -> NDArray[np.float64]:
    return advantages({"quality": table}, [{"quality": 1.0}] * len(table), config)


# By hand


@given(tables())
def test_group_statistics_by_hand(table: NDArray[np.float64]):
    expected = [[(r - fmean(row)) / (pstdev(row) + 1e-4) for r in row] for row in table.tolist()]
    np.testing.assert_allclose(one_reward(table, GROUP), expected, atol=1e-12)


@given(tables())
def test_global_statistics_by_hand(table: NDArray[np.float64]):
    spread = pstdev(table.ravel().tolist())
    expected = [[(r - fmean(row)) / (spread + 1e-4) for r in row] for row in table.tolist()]
    np.testing.assert_allclose(one_reward(table, GLOBAL), expected, atol=1e-12)


def test_global_statistics_are_of_the_prompts_scored_alike():
    """A reward of another scale in the same epoch changes nothing, nor does the weight of a single reward."""
    verdicts, likings = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[10.0, 30.0], [12.0, 14.0]])
    apart = [one_reward(verdicts, GLOBAL), one_reward(likings, GLOBAL)]
    nowhere = np.full((2, 2), np.nan)
    rewards = {
        "geneval": np.concatenate([verdicts[:1], nowhere, verdicts[1:]]),
        "quality": np.concatenate([nowhere[:1], likings, nowhere[:1]]),
    }
    mixed = advantages(rewards, [{"geneval": 1.0}, {"quality": 1.0}, {"quality": 1.0}, {"geneval": 1.0}], GLOBAL)
    np.testing.assert_allclose(mixed[[0, 3]], apart[0])
    np.testing.assert_allclose(mixed[[1, 2]], apart[1])
    weighed = advantages({"quality": likings}, [{"quality": 0.3}] * 2, GLOBAL)
    np.testing.assert_allclose(weighed, apart[1], rtol=1e-4)


def test_sum_adds_raw_rewards_with_weights():
    rewards = {"geneval": np.array([[0.0, 1.0, 0.5]]), "quality": np.array([[20.0, 21.0, 26.0]])}
    weights = [{"geneval": 2.0, "quality": 0.5}]
    assert weighted_sum(rewards, weights).tolist() == [[10.0, 12.5, 14.0]]
    row = [10.0, 12.5, 14.0]
    expected = [(r - fmean(row)) / (pstdev(row) + EPS) for r in row]
    np.testing.assert_allclose(advantages(rewards, weights, GROUP)[0], expected)


def test_normalised_by_hand():
    """Each reward inside its group, the weighted sum, then the spread over the epoch."""
    rewards = {
        "geneval": np.array([[0.0, 1.0, 1.0], [0.2, 0.4, 0.9]]),
        "quality": np.array([[20.0, 26.0, 23.0], [19.0, 25.0, 22.0]]),
    }
    weights = [{"geneval": 1.0, "quality": 0.5}] * 2
    totals = []
    for slot in range(2):
        parts = []
        for name, weight in weights[slot].items():
            row = rewards[name][slot].tolist()
            parts.append([weight * (r - fmean(row)) / (pstdev(row) + EPS) for r in row])
        totals.append([a + b for a, b in zip(*parts, strict=True)])
    flat = [value for row in totals for value in row]
    expected = [[(value - fmean(flat)) / (pstdev(flat) + EPS) for value in row] for row in totals]
    np.testing.assert_allclose(advantages(rewards, weights, NORMALISED), expected, atol=1e-12)


def test_normalised_lets_no_reward_dominate_by_its_scale():
    """The two rewards disagree; as raw sums the one with the larger numbers decides alone."""
    rewards = {"geneval": np.array([[0.0, 0.0, 1.0, 1.0]]), "quality": np.array([[900.0, 800.0, 400.0, 300.0]])}
    weights = [{"geneval": 2.0, "quality": 1.0}]
    assert advantages(rewards, weights, GROUP)[0].argmax() == 0
    assert advantages(rewards, weights, NORMALISED)[0].argmax() == 2


def test_group_and_global_differ_where_groups_spread_differently():
    table = np.array([[0.0, 0.1], [0.0, 10.0]])
    group, epoch = one_reward(table, GROUP), one_reward(table, GLOBAL)
    assert group[0, 1] == pytest.approx(1, rel=3e-3)
    assert epoch[0, 1] < 0.02 < 1 < epoch[1, 1]


# Properties


@each_config
@given(table=tables(), shift=scores, scale=st.sampled_from([0.5, 2.0, 16.0]))
def test_shift_and_scale_of_a_reward_change_nothing(
    config: AdvantageConfig, table: NDArray[np.float64], shift: float, scale: float
):
    # The 1e-4 beside the deviation (at least .1 here) is all that scale may show.
    np.testing.assert_allclose(
        one_reward(scale * table + shift, config), one_reward(table, config), rtol=2e-3, atol=1e-9
    )


@each_config
@given(table=tables())
def test_each_group_sums_to_zero_and_keeps_its_order(config: AdvantageConfig, table: NDArray[np.float64]):
    got = one_reward(table, config)
    np.testing.assert_allclose(got.sum(axis=1), 0, atol=1e-9)
    for row, advantage in zip(table, got, strict=True):
        order = np.argsort(row, kind="stable")
        assert (np.diff(advantage[order]) >= -1e-12).all()


@given(tables())
def test_with_group_statistics_a_group_does_not_see_the_others(table: NDArray[np.float64]):
    together = one_reward(table, GROUP)
    for slot in range(len(table)):
        np.testing.assert_array_equal(one_reward(table[slot : slot + 1], GROUP)[0], together[slot])


# Missing scores


@each_config
@given(table=tables(missing=True))
def test_a_missing_score_is_missing_and_nothing_else_is(config: AdvantageConfig, table: NDArray[np.float64]):
    np.testing.assert_array_equal(np.isnan(one_reward(table, config)), np.isnan(table))


@each_config
@given(table=tables())
def test_a_missing_image_leaves_its_groups_statistics(config: AdvantageConfig, table: NDArray[np.float64]):
    """A column of missing images gives what the epoch without these images gives."""
    holed = np.column_stack([table, np.full(len(table), np.nan)])
    np.testing.assert_allclose(one_reward(holed, config)[:, :-1], one_reward(table, config), atol=1e-12)


@each_config
def test_missing_one_of_two_rewards_takes_the_image_out_of_both(config: AdvantageConfig):
    geneval, quality = np.array([[0.0, 1.0, 0.5, 9.0]]), np.array([[3.0, 1.0, 4.0, np.nan]])
    weights = [{"geneval": 1.0, "quality": 0.7}]
    got = advantages({"geneval": geneval, "quality": quality}, weights, config)
    without = advantages({"geneval": geneval[:, :3], "quality": quality[:, :3]}, weights, config)
    assert math.isnan(got[0, 3])
    np.testing.assert_allclose(got[:, :3], without, atol=1e-12)


@each_config
def test_a_missing_score_is_not_a_zero(config: AdvantageConfig):
    """As a 0 the failed image would be far the worst and lift all others."""
    got = one_reward(np.array([[20.0, 21.0, 22.0, np.nan]]), config)[0]
    assert got[0] < 0 < got[2]
    assert got[1] == pytest.approx(0, abs=1e-9)


@each_config
def test_an_epoch_without_any_score_has_no_advantage(config: AdvantageConfig):
    assert np.isnan(one_reward(np.full((2, 3), np.nan), config)).all()


@each_config
def test_a_lone_known_image_has_nothing_to_compare_with(config: AdvantageConfig):
    got = one_reward(np.array([[np.nan, 5.0, np.nan], [1.0, 2.0, 3.0]]), config)
    assert got[0, 1] == 0


# Absent rewards


@each_config
def test_a_reward_not_asked_for_is_absent_not_missing(config: AdvantageConfig):
    """The second group asks for OCR alone; that it has no GenEval score takes nothing away from it."""
    rewards = {
        "geneval": np.array([[0.0, 1.0, 1.0], [np.nan, np.nan, np.nan]]),
        "ocr": np.array([[np.nan, np.nan, np.nan], [0.1, 0.5, 0.9]]),
    }
    got = advantages(rewards, [{"geneval": 1.0}, {"ocr": 1.0}], config)
    assert np.isfinite(got).all()
    assert (np.diff(got[1]) > 0).all()


def test_a_score_that_was_not_asked_for_does_not_count():
    rewards = {"geneval": np.array([[0.0, 1.0]]), "ocr": np.array([[7.0, -7.0]])}
    assert weighted_sum(rewards, [{"geneval": 1.0}]).tolist() == [[0.0, 1.0]]


# Groups without signal


@each_config
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_equal_rewards_give_no_advantage(config: AdvantageConfig, value: float):
    got = one_reward(np.array([[value] * 7, [0.0, 1, 2, 3, 4, 5, 6]]), config)
    np.testing.assert_allclose(got[0], 0, atol=1e-6)


def test_zero_variance_fraction_counts_groups_without_signal():
    nan = np.nan
    table = np.array([[1.0, 1, 1], [0, 1, 1], [nan, 2, 2], [nan, nan, nan], [nan, nan, 3], [nan, 0, 1]])
    assert zero_variance_fraction(table) == pytest.approx(4 / 6)


def test_normalise_groups_with_a_deviation_of_its_own():
    np.testing.assert_allclose(normalise_groups(np.array([[1.0, 3.0]]), [2.0]), [[-1 / 2.0001, 1 / 2.0001]])
