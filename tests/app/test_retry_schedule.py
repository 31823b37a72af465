"""Turns: one for each, in order, kept for who was promised one, by whichever worker it comes to."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.app.limits import MAX_RETRY_SECONDS
from vizora_rt.app.retry_schedule import ENTRIES, KEPT_SECONDS, MEMORY_BYTES, PROBES, RetrySchedule, key_of

NOW = 764_000.0


def memory() -> memoryview:
    return memoryview(bytearray(MEMORY_BYTES))


def test_a_key_is_the_same_in_each_process_and_never_nobodys() -> None:
    assert key_of("screen-1") == 0x4FD6946B207889FA
    assert len({key_of(f"screen-{number}") for number in range(10_000)}) == 10_000
    assert 0 not in {key_of(name) for name in ("", "ä", "x" * 128)}


@pytest.mark.parametrize(("per_second", "fleet"), [(100, 2000), (2500, 20_000), (5000, 20_000)])
def test_turns_lie_as_far_apart_as_the_rate_asks_for(per_second: int, fleet: int) -> None:
    turns = RetrySchedule(memory(), per_second)
    taken = [turns.take(key_of(f"screen-{number}"), NOW) for number in range(fleet)]
    assert [later - sooner for sooner, later in pairwise([NOW, *taken])] == pytest.approx([1 / per_second] * fleet)


def test_who_asks_again_keeps_its_turn() -> None:
    """Once a second, whatever it is told: it is no sooner for that, and nobody else is later."""
    turns = RetrySchedule(memory(), 10)
    first = [turns.take(key, NOW) for key in range(1, 101)]
    for second in range(1, 9):
        assert [turns.take(key, NOW + second) for key in range(1, 101)] == first
    assert turns.take(101, NOW + 8) == pytest.approx(NOW + 10.1)


def test_another_worker_knows_it() -> None:
    shared = memory()
    one, other = RetrySchedule(shared, 10), RetrySchedule(shared, 10)
    turn = one.take(7, NOW)
    assert other.take(7, NOW + 1) == turn
    assert other.take(8, NOW) == pytest.approx(turn + 0.1)
    other.forget(7, NOW + 1)
    assert one.take(7, NOW + 1) > turn


def test_who_is_in_begins_anew() -> None:
    turns = RetrySchedule(memory(), 10)
    for key in (1, 2, 3):
        turns.take(key, NOW)
    turns.forget(2, NOW)
    assert turns.take(1, NOW) == pytest.approx(NOW + 0.1)
    assert turns.take(2, NOW) == pytest.approx(NOW + 0.4)


def test_the_queue_moves_on_with_the_clock() -> None:
    turns = RetrySchedule(memory(), 10)
    for key in range(1, 101):
        turns.take(key, NOW)
    assert turns.take(500, NOW + 4) == pytest.approx(NOW + 10.1)
    assert turns.take(501, NOW + 30) == pytest.approx(NOW + 30.1)


def test_a_turn_that_nobody_came_for_is_given_up_in_the_end() -> None:
    turns = RetrySchedule(memory(), 10)
    turn = turns.take(1, NOW)
    assert turns.take(1, turn + KEPT_SECONDS - 1) == turn
    assert turns.take(1, turn + KEPT_SECONDS + 1) == pytest.approx(turn + KEPT_SECONDS + 1.1)


def test_nobody_is_sent_away_for_long() -> None:
    turns = RetrySchedule(memory(), 10)
    taken = [turns.take(key, NOW) for key in range(1, 2001)]
    assert max(taken) <= NOW + MAX_RETRY_SECONDS + 0.001
    assert min(taken[590:610]) == pytest.approx(NOW + 0.1)


def test_without_a_rate_it_is_everybodys_turn_at_once() -> None:
    turns = RetrySchedule(memory(), 0)
    assert {turns.take(key, NOW) for key in range(1, 100)} == {NOW}


def test_more_than_there_is_room_for_take_the_places_of_others() -> None:
    turns = RetrySchedule(memory(), 1e6)
    keys = [7 + ENTRIES * number for number in range(1, PROBES + 2)]  # all of one place
    taken = [turns.take(key, NOW) for key in keys]
    assert [turns.take(key, NOW) for key in keys[1:]] == taken[1:]
    assert turns.take(keys[0], NOW) > max(taken)


def test_most_of_a_fleet_that_fills_half_of_it_is_remembered() -> None:
    turns, dice = RetrySchedule(memory(), 1e6), random.Random(1)
    keys = [dice.getrandbits(64) for _ in range(ENTRIES // 2)]
    taken = [turns.take(key, NOW) for key in keys]
    forgotten = sum(turns.take(key, NOW) != turn for key, turn in zip(keys, taken, strict=True))
    assert forgotten < len(keys) / 100


@given(st.lists(st.tuples(st.integers(1, 2**64 - 1), st.floats(0, 200), st.booleans()), max_size=60))
def test_a_turn_is_never_further_away_than_a_minute(steps: list[tuple[int, float, bool]]) -> None:
    turns, now = RetrySchedule(memory(), 0.5), NOW
    for key, passes, enters in steps:
        now += passes
        if enters:
            turns.forget(key, now)
        assert now - KEPT_SECONDS <= turns.take(key, now) <= now + MAX_RETRY_SECONDS + 2
