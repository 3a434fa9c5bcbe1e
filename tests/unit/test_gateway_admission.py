import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import DrainRate, hopeless_for, retry_after

pytestmark = pytest.mark.unit


def test_the_rate_is_items_over_loaded_time():
    drain = DrainRate(memory_s=1e9)
    assert drain.per_second(0.0) is None
    drain.finished(16, 50.0)  # nothing waited
    drain.loaded(True, 100.0)
    for second in range(101, 105):
        assert drain.per_second(second) is None
        drain.finished(16, second)
    assert drain.per_second(104.0) == pytest.approx(16.0)
    drain.loaded(False, 104.0)
    drain.finished(1, 120.0)
    assert drain.per_second(200.0) == pytest.approx(16.0)  # idle time does not count, nor what it brings
    drain.loaded(True, 200.0)
    assert drain.per_second(204.0) == pytest.approx(8.0)  # but silence under load does


def test_what_is_long_ago_fades():
    drain = DrainRate(memory_s=10.0)
    drain.loaded(True, 0.0)
    for tenth in range(1, 601):
        drain.finished(10 if tenth <= 300 else 2, tenth / 10)
    assert drain.per_second(60.0) == pytest.approx(20 + 80 * math.exp(-3), rel=0.02)


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 64)), min_size=4, max_size=60), st.floats(1, 100))
def test_the_rate_lies_among_the_rates_of_the_batches(batches, memory_s):
    drain, now = DrainRate(memory_s), 0.0
    drain.loaded(True, now)
    for seconds, items in batches:
        now += seconds
        drain.finished(items, now)
    rates = [items / seconds for seconds, items in batches]
    fade = math.exp(max(seconds for seconds, _ in batches) / memory_s)  # within one batch
    assert min(rates) * (1 - 1e-9) <= drain.per_second(now) <= max(rates) * fade * (1 + 1e-9)


@given(st.floats(0, 1e7), st.one_of(st.none(), st.floats(0, 1e6)))
def test_retry_after_is_whole_seconds_within_bounds(excess, rate):
    wait = retry_after(excess, rate)
    assert isinstance(wait, int)
    assert 1 <= wait <= 60
    if rate and wait < 60:
        assert wait * rate >= excess * (1 - 1e-9)  # by then there is room


def test_retry_after_grows_with_the_backlog():
    assert [retry_after(excess, 10.0) for excess in (5, 100, 101, 10_000)] == [1, 10, 11, 60]


@given(st.integers(0, 10**6), st.one_of(st.none(), st.just(0.0), st.floats(0.01, 1e5)), st.floats(0, 600))
def test_after_the_time_named_a_request_may_be_in_time_again(ahead, rate, timeout):
    wait = hopeless_for(ahead, rate, timeout)
    assert wait >= 0
    if wait > 0:
        assert rate
        assert (ahead - wait * rate) / rate <= timeout + 1e-9 * ahead / rate  # rounding
        assert ahead / rate > 0.75 * timeout
    if not ahead or not rate:
        assert wait == 0
