import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hedging import LEAST_KNOWN, Hedging

pytestmark = pytest.mark.unit


def test_nothing_is_late_before_enough_is_known():
    hedging = Hedging()
    for _ in range(LEAST_KNOWN - 1):
        hedging.took(8, 0.1)
    assert hedging.patience_s(8) is None
    hedging.took(8, 0.1)
    assert hedging.patience_s(8) == 0.1
    assert hedging.patience_s(1) is None


def test_patience_is_the_95th_percentile_of_batches_of_that_size():
    hedging = Hedging()
    for number in range(1, 101):
        hedging.took(1, number / 100)
        hedging.took(16, float(number))
    assert hedging.patience_s(1) == 0.95
    assert hedging.patience_s(16) == 95.0


def test_old_durations_are_forgotten():
    hedging = Hedging()
    for seconds in [10.0] * 300 + [1.0] * 200:
        hedging.took(4, seconds)
    assert hedging.patience_s(4) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 32)), max_size=300), st.sampled_from([0.0, 0.05, 0.5]))
def test_what_is_sent_twice_stays_within_the_budget(events, extra):
    hedging = Hedging(extra=extra)
    sent = twice = 0
    for first, items in events:
        if first:
            hedging.sent(items)
            sent += items
        elif hedging.allows(items):
            hedging.sent_again(items)
            twice += items
        assert twice <= extra * sent + 1e-9
