"""The wheel, turned by hand on a clock of our own, and a little on a real loop."""

import asyncio
import json
from collections.abc import Callable

import pytest

from vizora_rt.net.timer_wheel import BATCH, TICK, Wheel


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Entry:
    """Writes down when it was called and answers with the next of its delays, None after the last."""

    def __init__(self, *delays: float) -> None:
        self.delays = list(delays)
        self.calls: list[float] = []

    def on_timer(self, now: float) -> float | None:
        self.calls.append(now)
        return self.delays.pop(0) if self.delays else None


class Broken:
    def on_timer(self, now: float) -> float | None:
        raise RuntimeError("a fault of ours")


class Then:
    """Calls a function, once."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def on_timer(self, now: float) -> float | None:
        self.call()
        return None


def run(wheel: Wheel, clock: Clock, seconds: float, step: float = TICK) -> None:
    """Let `seconds` pass, tick by tick."""
    for _ in range(round(seconds / step)):
        clock.now += step
        while wheel.turn():
            pass


@pytest.mark.parametrize("phase", [0.0, 0.1, 0.25, 0.499])
@pytest.mark.parametrize("delay", [0.0, 0.001, 0.5, 0.7, 25.0, 300.0])
def test_calls_not_before_the_time_and_at_most_a_tick_after(phase: float, delay: float) -> None:
    clock = Clock(1000.0 + phase)
    wheel = Wheel(clock)
    clock.now += 0.3
    added = clock.now
    entry = Entry()
    wheel.add(entry, delay)
    run(wheel, clock, delay + 1.0, step=0.01)
    assert len(entry.calls) == 1
    assert added + delay <= entry.calls[0] <= added + delay + TICK + 0.02


def test_now_is_the_time_of_the_last_turn() -> None:
    clock = Clock(7.0)
    wheel = Wheel(clock)
    assert wheel.now == 7.0
    clock.now = 7.9
    assert wheel.now == 7.0
    wheel.turn()
    assert wheel.now == 7.9


def test_an_entry_says_when_it_wants_to_be_called_again_and_whether() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    entry = Entry(2.0, 10.0)
    wheel.add(entry, 1.0)
    run(wheel, clock, 60.0)
    assert entry.calls == [1001.0, 1003.0, 1013.0]
    assert len(wheel) == 0


def test_an_entry_that_wants_no_delay_waits_for_the_next_tick() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    entry = Entry(0.0, 0.0)
    wheel.add(entry, 0.0)
    clock.now += TICK
    assert not wheel.turn()
    assert len(entry.calls) == 1
    assert not wheel.turn()
    assert len(entry.calls) == 1
    run(wheel, clock, 1.0)
    assert len(entry.calls) == 3


def test_entries_of_a_slot_are_called_in_the_order_they_came() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    order: list[int] = []
    for number in range(5):
        wheel.add(Then(lambda n=number: order.append(n)), 3.0)  # type: ignore[misc]
    run(wheel, clock, 3.0)
    assert order == [0, 1, 2, 3, 4]


def test_an_entry_may_add_another() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    second = Entry()
    wheel.add(Then(lambda: wheel.add(second, 5.0)), 1.0)
    run(wheel, clock, 5.5)
    assert second.calls == []
    run(wheel, clock, 0.5)
    assert second.calls == [1006.0]


def test_a_stalled_loop_loses_no_entry() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    entries = [Entry() for _ in range(40)]
    for number, entry in enumerate(entries):
        wheel.add(entry, number * 1.0)
    clock.now += 3600.0
    assert not wheel.turn()
    assert [entry.calls for entry in entries] == [[4600.0]] * 40


def test_a_clock_that_did_not_move_runs_nothing_twice() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    entry = Entry(1.0)
    wheel.add(entry, 1.0)
    clock.now += 1.0
    for _ in range(3):
        wheel.turn()
    assert entry.calls == [1001.0]


def test_a_slot_of_twenty_thousand_is_worked_off_in_batches() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    entries = [Entry(25.0) for _ in range(20_000)]
    for entry in entries:
        wheel.add(entry, 25.0)
    clock.now += 25.0
    turns, done = 0, 0
    more = True
    while more:
        more = wheel.turn()
        now_done = sum(bool(entry.calls) for entry in entries)
        assert now_done - done <= BATCH
        turns, done = turns + 1, now_done
    assert (turns, done) == (-(-20_000 // BATCH), 20_000)
    assert {len(entry.calls) for entry in entries} == {1}
    assert len(wheel) == 20_000


def test_what_is_left_of_a_slot_comes_before_the_next_slot() -> None:
    clock = Clock()
    wheel = Wheel(clock, batch=2)
    order: list[str] = []
    for name in ("a", "b", "c"):
        wheel.add(Then(lambda n=name: order.append(n)), 0.5)  # type: ignore[misc]
    wheel.add(Then(lambda: order.append("d")), 1.0)
    clock.now += 0.5
    assert wheel.turn()
    assert len(wheel) == 2
    clock.now += 0.5
    assert not wheel.turn()
    assert order == ["a", "b", "c", "d"]


def test_a_fault_in_one_entry_does_not_lose_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    wheel = Wheel(clock)
    first, last = Entry(1.0), Entry()
    for entry in (first, Broken(), Broken(), last):
        wheel.add(entry, 1.0)
    run(wheel, clock, 2.0)
    assert first.calls == [1001.0, 1002.0]
    assert last.calls == [1001.0]
    assert len(wheel) == 0
    (line,) = capfd.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["event"], record["entries"], record["level"]) == ("timer failed", 2, "error")
    assert "a fault of ours" in record["traceback"]


async def test_ticks_on_the_loop_until_stopped() -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop.time, tick=0.001)
    wheel.start()
    called = asyncio.Event()
    for _ in range(3):
        called.clear()
        wheel.add(Then(called.set), 0.002)
        await asyncio.wait_for(called.wait(), 10)
    entry = Entry()
    wheel.add(entry, 0.001)
    wheel.stop()
    assert len(wheel) == 0
    late = Entry()
    wheel.add(late, 0.001)
    passed = asyncio.Event()
    loop.call_later(0.02, passed.set)
    await passed.wait()
    assert (entry.calls, late.calls) == ([], [])
    wheel.stop()


async def test_what_is_left_of_a_slot_does_not_wait_for_the_next_tick() -> None:
    # A hundred ticks would be twenty seconds.
    wheel = Wheel(asyncio.get_running_loop().time, tick=0.2, batch=1)
    first, second = asyncio.Event(), asyncio.Event()
    for _ in range(100):
        wheel.add(Entry(), 0.0)
    wheel.add(Then(first.set), 0.0)
    wheel.start()
    await asyncio.wait_for(first.wait(), 10)
    wheel.add(Then(second.set), 0.0)
    await asyncio.wait_for(second.wait(), 10)
    wheel.stop()


async def test_one_batch_in_one_turn_of_the_loop() -> None:
    loop = asyncio.get_running_loop()
    # Ticks that are due in every turn of the loop must not hurry what is left of a slot.
    wheel = Wheel(loop.time, tick=0.00001, batch=3)
    turn, called, done = 0, [], asyncio.Event()

    def count() -> None:
        nonlocal turn
        turn += 1
        if not done.is_set():
            loop.call_soon(count)

    for _ in range(99):
        wheel.add(Then(lambda: called.append(turn)), 0.0)
    wheel.add(Then(done.set), 0.0)
    wheel.start()
    count()
    await asyncio.wait_for(done.wait(), 10)
    wheel.stop()
    assert len(called) == 99
    assert max(called.count(number) for number in called) == 3


@pytest.mark.parametrize("batch", [1, 10])
async def test_stops_in_the_middle_of_a_slot(batch: int) -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop.time, tick=0.001, batch=batch)
    stopped = asyncio.Event()

    def stop() -> None:
        wheel.stop()
        stopped.set()

    rest = Entry()
    wheel.add(Then(stop), 0.0)
    wheel.add(rest, 0.0)
    wheel.start()
    await asyncio.wait_for(stopped.wait(), 10)
    passed = asyncio.Event()
    loop.call_later(0.01, passed.set)
    await passed.wait()
    assert rest.calls == []
