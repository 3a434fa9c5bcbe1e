import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.page.activity import SECONDS_KEPT, Activity

pytestmark = pytest.mark.unit


def test_rates_are_means_over_the_last_five_whole_seconds():
    activity = Activity()
    for second in range(10):
        activity.answered(items=10, errors=second % 2, latency_s=0.1, now=100.0 + second)
    assert activity.items_per_s(110.0) == 10.0
    assert activity.errors_per_s(110.0) == 3 / 5  # seconds 105, 107 and 109
    assert activity.items_per_s(112.0) == 6.0
    assert activity.items_per_s(115.0) == 0.0


def test_the_second_that_is_not_over_is_not_counted():
    activity = Activity()
    activity.answered(items=50, errors=0, latency_s=0.1, now=7.2)
    assert activity.items_per_s(7.9) == 0.0
    assert activity.items_per_s(8.0) == 10.0


@given(st.lists(st.floats(0.001, 100.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_a_latency_is_right_to_its_class(latencies, quantile):
    activity = Activity()
    for latency in latencies:
        activity.answered(items=1, errors=0, latency_s=latency, now=0.5)
    exact = sorted(latencies)[math.ceil(quantile * len(latencies)) - 1]
    told = activity.latency_s(quantile, 1.0)
    assert told is not None
    assert exact / 1.0001 <= told <= exact * 1.1501


def test_a_quiet_reward_has_no_latency():
    activity = Activity()
    assert activity.latency_s(0.5, 5.0) is None
    activity.answered(items=1, errors=0, latency_s=0.1, now=5.0)
    assert activity.latency_s(0.5, 6.0) == pytest.approx(0.1, rel=0.16)
    assert activity.latency_s(0.5, 16.0) is None


def test_history_has_one_place_a_second_and_gaps_where_nothing_happened():
    activity = Activity()
    activity.answered(items=3, errors=0, latency_s=0.1, now=200.0)
    activity.answered(items=4, errors=0, latency_s=0.1, now=298.5)
    items, latencies = activity.history(300.0)
    assert len(items) == len(latencies) == SECONDS_KEPT
    assert items[-1] == 0
    assert items[-2] == 4
    assert items[-100] == 3
    assert sum(items) == 7
    assert [index for index, latency in enumerate(latencies) if latency is not None] == [20, 118]


def test_memory_does_not_grow_with_time():
    activity = Activity()
    for second in range(5 * SECONDS_KEPT):
        activity.answered(items=1, errors=0, latency_s=0.1, now=float(second))
    assert len(activity._seconds) == SECONDS_KEPT
