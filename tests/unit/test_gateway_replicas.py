import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.replicas import ReplicaSet

pytestmark = pytest.mark.unit


def replicas_up(count: int, **settings: float) -> ReplicaSet:
    replicas = ReplicaSet([f"http://r{n}" for n in range(count)], now=0.0, **settings)
    for replica in replicas.replicas:
        replicas.probed(replica, True, 0.0)
    return replicas


def fail(replicas: ReplicaSet, number: int, times: int, now: float = 0.0) -> bool:
    return [replicas.failed(replicas.replicas[number], now) for _ in range(times)][-1]


def test_nothing_is_picked_before_a_probe_says_up():
    replicas = ReplicaSet(["http://r0"], now=3.0)
    assert replicas.pick(3.0) is None
    assert replicas.gone_for(5.0) == 2.0
    replicas.probed(replicas.replicas[0], True, 5.0)
    assert replicas.pick(5.0) is replicas.replicas[0]
    assert replicas.gone_for(9.0) is None


def test_least_outstanding_items_then_the_one_whose_work_began_first():
    replicas = replicas_up(3)
    first, second, third = replicas.replicas
    replicas.started(first, 8)
    replicas.started(second, 2)
    assert replicas.pick(0.0) is third
    replicas.started(third, 2)
    assert replicas.pick(0.0) is second
    replicas.finished(first, 8)
    assert replicas.pick(0.0) is first


def test_of_idle_replicas_the_one_used_last_unless_it_has_just_failed():
    replicas = replicas_up(3)
    second = replicas.replicas[1]
    for _ in range(2):
        replicas.started(second, 1)
        replicas.finished(second, 1)
        assert replicas.pick(0.0) is second
    replicas.failed(second, 0.0)
    assert replicas.pick(0.0) is replicas.replicas[0]
    replicas.succeeded(second, 0.0)
    assert replicas.pick(0.0) is second


def test_idle_are_those_that_would_start_at_once():
    replicas = replicas_up(4)
    first, second, third, _ = replicas.replicas
    replicas.started(first, 1)
    replicas.busy(second, 5.0)
    replicas.probed(third, False, 0.0)
    assert (replicas.idle(0.0), replicas.idle(6.0)) == (1, 2)


def test_a_replica_holds_a_bounded_number_of_batches():
    replicas = replicas_up(1, inflight_batches=2)
    (only,) = replicas.replicas
    replicas.started(only, 1)
    replicas.started(only, 1)
    assert replicas.pick(0.0) is None
    replicas.finished(only, 1)
    assert replicas.pick(0.0) is only


def test_a_suspect_is_alone_at_its_replica():
    replicas = replicas_up(2)
    first, second = replicas.replicas
    replicas.started(first, 1)
    assert replicas.pick(0.0, idle=True) is second
    replicas.started(second, 1, suspect=True)
    assert replicas.pick(0.0) is first
    assert replicas.pick(0.0, idle=True) is None
    replicas.finished(second, 1)
    assert replicas.pick(0.0) is second


def test_a_failed_batch_waits_for_another_replica_if_there_is_one():
    replicas = replicas_up(2, inflight_batches=1)
    first, second = replicas.replicas
    replicas.started(second, 4)
    assert replicas.pick(0.0, avoid={first.url}) is None
    replicas.probed(second, False, 0.0)
    assert replicas.pick(0.0, avoid={first.url}) is first


def test_ejection_after_five_failures_in_a_row_for_a_growing_time():
    replicas = replicas_up(2, eject_s=1.0, eject_max_s=3.0)
    first, second = replicas.replicas
    assert not fail(replicas, 0, 4)
    replicas.succeeded(first, 0.0)
    assert not fail(replicas, 0, 4)
    assert fail(replicas, 0, 1)
    assert replicas.usable(0.99) == [second]
    assert replicas.next_change(0.5) == 1.0
    assert first in replicas.usable(1.0)
    assert fail(replicas, 0, 5, now=1.0)
    assert replicas.next_change(1.0) == 3.0
    assert fail(replicas, 0, 5, now=3.0)
    assert replicas.next_change(3.0) == 6.0  # cut to eject_max_s


def test_a_replica_that_behaves_starts_afresh():
    replicas = replicas_up(2, eject_s=1.0)
    fail(replicas, 0, 5)
    replicas.succeeded(replicas.replicas[0], 1.5)
    assert replicas.replicas[0].ejections == 1
    replicas.succeeded(replicas.replicas[0], 2.0)
    assert replicas.replicas[0].ejections == 0


def test_the_last_one_in_rotation_is_never_ejected():
    replicas = replicas_up(2)
    assert fail(replicas, 0, 5)
    assert not fail(replicas, 1, 50)
    assert replicas.usable(0.5) == [replicas.replicas[1]]


def test_panic_uses_all_that_are_up():
    replicas = replicas_up(3, eject_s=10.0)
    first, second, third = replicas.replicas
    fail(replicas, 0, 5)
    fail(replicas, 1, 5)
    replicas.probed(third, False, 1.0)
    assert replicas.usable(1.0) == [first, second]
    assert replicas.gone_for(1.0) is None


def test_a_busy_replica_rests_without_blame():
    replicas = replicas_up(1)
    (only,) = replicas.replicas
    replicas.busy(only, 2.0)
    assert replicas.pick(1.0) is None
    assert replicas.next_change(1.0) == 2.0
    assert replicas.pick(2.0) is only
    assert only.failures == 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from(["fail", "succeed", "up", "down", "start", "finish"]), st.floats(0, 5)
        ),
        max_size=80,
    )
)
def test_whatever_happens_somebody_serves_while_anybody_is_up(events):
    replicas = replicas_up(3)
    now = 0.0
    for number, event, wait in events:
        now += wait
        replica = replicas.replicas[number]
        if event == "fail":
            rotation = [r for r in replicas.replicas if r.up and r.ejected_until <= now]
            if replicas.failed(replica, now):
                assert rotation != [replica]
        elif event == "succeed":
            replicas.succeeded(replica, now)
        elif event in {"up", "down"}:
            replicas.probed(replica, event == "up", now)
        elif event == "start" and (picked := replicas.pick(now)) is not None:
            assert picked.up
            least = min(r.inflight_items for r in replicas.usable(now) if r.inflight_batches < 2)
            assert picked.inflight_items == least
            replicas.started(picked, 3)
        elif event == "finish" and replica.inflight_batches:
            replicas.finished(replica, 3)
        any_up = any(r.up for r in replicas.replicas)
        assert bool(replicas.usable(now)) == any_up
        assert (replicas.gone_for(now) is None) == any_up
        assert all(0 <= r.inflight_batches <= 2 for r in replicas.replicas)


def test_silence_first_costs_new_batches_and_then_the_place():
    replicas = replicas_up(2, probe_misses=3)
    first, second = replicas.replicas
    assert not replicas.missed(first, 1.0)
    replicas.started(second, 9)
    assert replicas.pick(1.0) is second  # though it has more to do
    replicas.started(second, 9)
    assert replicas.pick(1.0) is first  # better than nobody
    assert not replicas.missed(first, 2.0)
    replicas.probed(first, True, 2.5)
    assert [replicas.missed(first, now) for now in (3.0, 4.0, 5.0)] == [False, False, True]
    assert not first.up
    replicas.probed(second, False, 6.0)
    assert replicas.gone_for(7.0) == 1.0


def test_a_hedge_never_goes_where_the_batch_already_is():
    replicas = replicas_up(2)
    first, second = replicas.replicas
    assert replicas.pick(0.0, avoid={first.url}, strict=True) is second
    replicas.probed(second, False, 0.0)
    assert replicas.pick(0.0, avoid={first.url}, strict=True) is None
    assert replicas.pick(0.0, avoid={first.url}) is first


def test_who_is_no_longer_listed_finishes_and_is_forgotten():
    replicas = replicas_up(2)
    first, second = replicas.replicas
    replicas.started(first, 4)
    (new,) = replicas.list_only([second.url, "http://new"], 1.0)
    assert first.retiring
    assert replicas.usable(1.0) == [second]
    assert replicas.forget_retired() == []
    replicas.probed(second, False, 2.0)
    assert replicas.gone_for(2.0) == 0.0  # one that retires does not count as up
    replicas.finished(first, 4)
    assert replicas.forget_retired() == [first]
    assert replicas.replicas == [second, new]


def test_who_is_listed_again_before_it_is_forgotten_stays():
    replicas = replicas_up(2)
    first, second = replicas.replicas
    replicas.started(first, 4)
    replicas.list_only([second.url], 1.0)
    assert replicas.list_only([first.url, second.url], 2.0) == []
    assert not first.retiring
    assert replicas.usable(2.0) == [first, second]
