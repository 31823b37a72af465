"""The rate algorithm against a bucket that is simulated naively, and a meter's memory against a million keys."""

import random
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vizora_rt.app.limits import (
    BURST,
    MAX_KEYS,
    MAX_RETRY_SECONDS,
    SLACK,
    KeyedRateLimiter,
    Rate,
    RateLimiter,
    SlidingWindow,
)

CLOCKS = [0.0, 1.0, 12345.678, 1e6 + 0.1, 1_764_000_000.123]
"""`now` of a process's first second, of a machine's uptime, of the epoch."""


class Bucket:
    """What GCRA is equivalent to: a bucket of cells that refills steadily. With exact numbers."""

    def __init__(self, per_minute: int, capacity: int) -> None:
        self.per_second = Fraction(per_minute, 60)
        self.capacity = capacity
        self.cells = Fraction(capacity)
        self.since = Fraction(0)

    def take(self, now: Fraction) -> bool:
        self.cells = min(Fraction(self.capacity), self.cells + (now - self.since) * self.per_second)
        self.since = now
        if self.cells < 1:
            return False
        self.cells -= 1
        return True

    @property
    def nearly_one(self) -> bool:
        """Whether the slack makes up for what is missing."""
        return 1 - 2 * Fraction(SLACK) < self.cells < 1


def takes(rate: Rate, count: int, now: float, tat: float = 0.0) -> tuple[int, float]:
    """How many of `count` are allowed at once, and the arrival time after."""
    allowed = 0
    for _ in range(count):
        if not rate.wait(tat, now):
            tat = rate.next(tat, now)
            allowed += 1
    return allowed, tat


class TestRate:
    @pytest.mark.parametrize("now", CLOCKS)
    @pytest.mark.parametrize(("per_minute", "capacity"), [(120, 240), (30, 30), (7, 7), (1, 1), (1, 3), (6000, 12000)])
    def test_a_burst(self, per_minute: int, capacity: int, now: float) -> None:
        """A full bucket gives all its cells and no more, however the sums round."""
        rate = Rate(per_minute, capacity)
        allowed, tat = takes(rate, capacity + 5, now)
        assert allowed == capacity
        assert rate.wait(tat, now) == pytest.approx(60 / per_minute, rel=0.02)

    @pytest.mark.parametrize("now", CLOCKS)
    def test_then_one_per_interval(self, now: float) -> None:
        rate = Rate(120, 240)
        _, tat = takes(rate, 240, now)
        for second in range(1, 100):
            allowed, tat = takes(rate, 5, now + second, tat)
            assert allowed == 2

    def test_waiting_as_told(self) -> None:
        rate = Rate(7, 7)
        _, tat = takes(rate, 7, 100.0)
        wait = rate.wait(tat, 100.0)
        assert rate.wait(tat, 100.0 + wait / 2) == pytest.approx(wait / 2)
        assert rate.wait(tat, 100.0 + wait + 1e-9) == 0.0

    def test_silence_fills_it_up_and_not_over(self) -> None:
        rate = Rate(120, 240)
        _, tat = takes(rate, 240, 0.0)
        assert takes(rate, 1000, 120.0, tat)[0] == 240
        assert takes(rate, 1000, 1e9, tat)[0] == 240

    def test_off(self) -> None:
        rate = Rate(0, 0)
        assert not rate.interval
        assert takes(rate, 10_000, 5.0)[0] == 10_000

    @given(st.integers(1, 6000), st.integers(1, 600), st.lists(st.integers(0, 200_000), max_size=120))
    @example(1, 1, [0, 60_000, 59_999, 60_001])
    @example(120, 240, [0] * 120 + [500])
    def test_against_a_bucket(self, per_minute: int, capacity: int, gaps: list[int]) -> None:
        """Gaps are in milliseconds."""
        rate, bucket = Rate(per_minute, capacity), Bucket(per_minute, capacity)
        now, tat = 10**6, 0.0
        for gap in gaps:
            now += gap
            wait = rate.wait(tat, now / 1000)
            assert wait >= 0
            expected = bucket.take(Fraction(now, 1000))
            if not wait and not expected:
                assert bucket.nearly_one
                return
            assert (not wait) is expected
            if not wait:
                tat = rate.next(tat, now / 1000)


class Sender:
    def __init__(self) -> None:
        self.tat = 0.0


class TestCost:
    def test_what_costs_more_than_one_is_owed(self) -> None:
        rate, sender = Rate(60, 10), Sender()
        assert rate.take(sender, 100.0, 9.0) == 0.0
        assert rate.take(sender, 100.0, 25.0) == 0.0
        assert rate.take(sender, 100.0) == rate.wait(sender.tat, 100.0) == pytest.approx(25.0, abs=0.1)
        assert rate.take(sender, 124.0) == pytest.approx(1.0, abs=0.1)
        assert rate.take(sender, 125.1) == 0.0

    def test_what_is_refused_costs_nothing(self) -> None:
        rate, sender = Rate(60, 1), Sender()
        rate.take(sender, 100.0)
        before = sender.tat
        assert rate.take(sender, 100.0, 50.0) > 0
        assert sender.tat == before

    def test_over_time_no_more_than_the_rate(self) -> None:
        rate, sender = Rate(120, 240), Sender()
        taken = sum(10 for tick in range(6000) if not rate.take(sender, 50.0 + tick / 10, 10.0))
        assert 240 + 1200 - 10 <= taken <= 240 + 1200 + 10

    def test_off(self) -> None:
        rate, sender = Rate(0, 0), Sender()
        assert [rate.take(sender, 1.0, 1e9), rate.take(sender, 1.0)] == [0.0, 0.0]
        assert sender.tat == 0.0


class TestMeter:
    def test_each_key_has_its_own(self) -> None:
        meter = KeyedRateLimiter(2)
        assert [meter.take("a", 5.0), meter.take("a", 5.0), meter.take("b", 5.0)] == [0.0, 0.0, 0.0]
        assert meter.take("a", 5.0) == pytest.approx(30, rel=0.01)
        assert meter.take("b", 5.0) == 0.0

    def test_the_refused_pay_nothing(self) -> None:
        """Who hammers is let in when he would have been anyway."""
        meter = KeyedRateLimiter(1)
        meter.take("a", 0.0)
        for second in range(1, 59):
            assert meter.take("a", float(second)) == pytest.approx(60 - second, abs=0.1)
        assert meter.take("a", 60.0) == 0.0

    def test_off(self) -> None:
        meter = KeyedRateLimiter(0)
        assert not any(meter.take("a", 1.0) for _ in range(1000))
        assert len(meter) == 0

    def test_who_caught_up_is_forgotten(self) -> None:
        meter = KeyedRateLimiter(60)
        for number in range(100_000):
            assert meter.take(number, number / 100) == 0.0
            assert len(meter) <= 1024  # 100 keys of the last second, and what the sweeps leave until the next

    def test_a_million_keys_at_once(self) -> None:
        """The latest are remembered."""
        meter = KeyedRateLimiter(1)
        for number in range(1_000_000):
            meter.take(number, 1.0)
            assert len(meter) <= MAX_KEYS
        assert all(meter.take(number, 1.0) for number in range(1_000_000 - MAX_KEYS // 4, 1_000_000))

    def test_a_sweep_forgets_nobody_who_must_wait(self) -> None:
        meter = KeyedRateLimiter(1)
        meter.take("a", 0.0)
        for number in range(5000):
            meter.take(number, 59.5)
        assert meter.take("a", 59.5) == pytest.approx(0.5, abs=0.1)

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20_000)), max_size=60), st.integers(1, 30))
    def test_against_a_rate_per_key(self, calls: list[tuple[int, int]], per_minute: int) -> None:
        meter, rate = KeyedRateLimiter(per_minute), Rate(per_minute, per_minute)
        arrivals: dict[int, float] = {}
        now = 0
        for key, gap in calls:
            now += gap
            wait = rate.wait(arrivals.get(key, 0.0), now / 1000)
            assert meter.take(key, now / 1000) == wait
            if not wait:
                arrivals[key] = rate.next(arrivals.get(key, 0.0), now / 1000)


class TestBudget:
    @pytest.mark.parametrize("now", CLOCKS)
    def test_any_second_takes_the_rate_and_a_burst_at_most(self, now: float) -> None:
        budget = RateLimiter(1000)
        taken = [now + ms / 10_000 for ms in range(30_000) if budget.take(now + ms / 10_000)]
        assert len(taken) == pytest.approx(3000 + 1000 * BURST, abs=2)
        for begin in taken[:: len(taken) // 50]:
            assert sum(begin <= each < begin + 1 for each in taken) <= 1000 * (1 + BURST) + 2

    def test_zero_is_no_limit(self) -> None:
        budget = RateLimiter(0)
        assert all(budget.take(1.0) for _ in range(100_000))
        budget.give_back()
        assert budget.take(1.0)

    def test_one_is_enough_for_one(self) -> None:
        budget = RateLimiter(1)
        assert [budget.take(now / 2) for now in range(5)] == [True, False, True, False, True]

    def test_what_was_given_back_is_there_for_the_next(self) -> None:
        budget = RateLimiter(4)
        assert [budget.take(9.0), budget.take(9.0)] == [True, False]
        for _ in range(20):
            budget.give_back()
            assert budget.take(9.0)
        assert not budget.take(9.0)

    def test_turns_are_spread_as_the_rate_asks_for(self) -> None:
        budget = RateLimiter(100)
        turns = [budget.retry_after(7.0) for _ in range(2000)]
        assert turns == sorted(turns)
        assert [turns.count(second) for second in range(1, 21)] == pytest.approx([100] * 20, abs=1)

    def test_the_queue_moves_on_with_the_clock(self) -> None:
        budget = RateLimiter(100)
        for _ in range(1000):
            budget.retry_after(0.0)
        assert (budget.retry_after(4.0), budget.retry_after(20.0)) == (7, 1)

    def test_nobody_is_sent_away_for_long(self) -> None:
        """Those who do not wait fill the queue; it begins anew."""
        budget = RateLimiter(10)
        turns = [budget.retry_after(1.0) for _ in range(6000)]
        assert (min(turns), max(turns)) == (1, MAX_RETRY_SECONDS)
        assert [turns.count(second) for second in range(1, 61)] == pytest.approx([100] * 60, abs=11)

    @pytest.mark.parametrize(("per_second", "fleet"), [(200, 3000), (2500, 20_000), (5000, 20_000)])
    def test_a_fleet_that_waits_its_turn_comes_twice_and_hardly_ever_more(self, per_second: int, fleet: int) -> None:
        """All come at once; who is sent away comes when it was told to, somewhere in that second."""
        budget, dice = RateLimiter(per_second), random.Random(fleet)
        told = [budget.retry_after(100.0) for _ in range(fleet) if not budget.take(100.0)]
        back = sorted(100.0 + wait + dice.random() for wait in told)
        again = [now for now in back if not budget.take(now)]
        assert len(again) <= fleet / 10


class TestWindow:
    def test_never_more_in_any_minute(self) -> None:
        """A bucket of ten lets nineteen through in its first minute."""
        window = SlidingWindow(10, 60, 4)
        taken = [at for at in range(300) if window.take("a", at / 2)]
        assert len([at for at in taken if at < 120]) == 10
        assert all(later - earlier >= 120 for earlier, later in zip(taken, taken[10:], strict=False))

    def test_each_key_has_its_own(self) -> None:
        window = SlidingWindow(1, 60, 4)
        assert [window.take(key, 1.0) for key in "aabb"] == [True, False, True, False]

    def test_keys_have_an_end_and_the_quiet_ones_make_room(self) -> None:
        window = SlidingWindow(2, 60, 3)
        assert [window.take(key, 0.0) for key in "abcd"] == [True, True, True, False]
        assert "d" not in window and "a" in window
        assert window.take("a", 30.0)
        assert window.take("d", 61.0)
        assert "a" in window and "b" not in window
        for number in range(100_000):
            window.take(number, 61.0)
            assert len(window) <= 3
