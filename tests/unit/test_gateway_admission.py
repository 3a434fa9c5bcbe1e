import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import DrainRate, hopeless_for, retry_after

pytestmark = pytest.mark.unit


def test_the_rate_is_items_over_busy_time():
    drain = DrainRate(window_s=10.0)
    assert drain.per_second(0.0) is None
    drain.busy(100.0)
    assert drain.per_second(101.0) is None
    drain.finished(16, 101.0)
    drain.finished(16, 102.0)
    assert drain.per_second(102.0) == 16.0


def test_only_the_window_counts():
    drain = DrainRate(window_s=10.0)
    drain.busy(0.0)
    for second in range(1, 31):
        drain.finished(100 if second <= 15 else 5, float(second))
    assert drain.per_second(30.0) == pytest.approx(5.5)  # 11 batches of 5 fall into [20, 30]


def test_idle_time_does_not_slow_the_rate():
    drain = DrainRate()
    drain.busy(0.0)
    drain.finished(20, 2.0)
    drain.idle(2.0)
    assert drain.per_second(50.0) == 10.0
    drain.busy(50.0)
    assert drain.per_second(50.5) == 10.0  # nothing finished yet: the last stretch stands
    drain.finished(4, 51.0)
    assert drain.per_second(51.0) == 4.0


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
