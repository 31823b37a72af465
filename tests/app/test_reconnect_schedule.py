"""Departures against what they promise: evenly spread, in time, and never a wave."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.app.reconnect_schedule import FIRST_MS, LEAST_PER_SECOND, SHARE, ReconnectSchedule, reconnect_schedules


def test_nobody() -> None:
    assert list(reconnect_schedules(0, 5.0, 3.0, 1000)) == []


def test_one() -> None:
    assert list(reconnect_schedules(1, 5.0, 0.0, 1000)) == [ReconnectSchedule(0.0, FIRST_MS)]
    assert list(reconnect_schedules(1, 5.0, 3.0, 1000)) == [ReconnectSchedule(0.0, FIRST_MS + 3010)]


def test_a_hurry() -> None:
    """All leave at once, and still come back one after the other."""
    leaving = list(reconnect_schedules(1000, 0.0, 3.0, 1000))
    assert {each.seconds for each in leaving} == {0.0}
    assert len({each.retry_after_ms for each in leaving}) == 1000


def test_few_do_not_take_long() -> None:
    assert max(each.seconds for each in reconnect_schedules(20, 5.0, 0.0, 1000)) < 20 / LEAST_PER_SECOND


def test_with_a_successor_nobody_waits_without_need() -> None:
    assert {each.retry_after_ms for each in reconnect_schedules(1000, 5.0, 0.0, 1000)} == {FIRST_MS}


@pytest.mark.parametrize("closed", [0.0, 3.0])
@given(count=st.integers(1, 5000), seconds=st.floats(0.0, 60.0), per_second=st.integers(0, 5000))
def test_they_leave_in_time_and_come_back_at_a_rate(closed: float, count: int, seconds: float, per_second: int) -> None:
    leaving = list(reconnect_schedules(count, seconds, closed, per_second))
    told = [each.seconds for each in leaving]
    assert told == sorted(told)
    assert told[-1] <= seconds
    last = told[-1]
    back = [each.seconds + each.retry_after_ms / 1000 for each in leaving]
    assert min(each.retry_after_ms for each in leaving) >= FIRST_MS
    assert min(back) >= FIRST_MS / 1000 + (last + closed if closed else 0.0) - 0.002
    if per_second:
        seconds_of = Counter(int(each) for each in back)
        assert max(seconds_of.values()) <= per_second * SHARE * 1.01 + 2
