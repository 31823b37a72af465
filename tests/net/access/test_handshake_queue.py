"""The line at the door: each is let in once, in order, at the rate of the budget; who leaves or is sent away is not."""

import asyncio
import time
from collections.abc import Callable

import pytest

from vizora_rt.app.limits import RateLimiter
from vizora_rt.app.retry_schedule import MEMORY_BYTES, RetrySchedule
from vizora_rt.net.access import handshake_queue
from vizora_rt.net.access.handshake_queue import HandshakeQueue, Ticket

PATIENCE = 30.0


class Door:
    """Who came in, in order, and who was told to come in how many seconds."""

    def __init__(self, per_second: float, seconds: float, memory: memoryview | None = None, workers: int = 1) -> None:
        turns = RetrySchedule(memory or memoryview(bytearray(MEMORY_BYTES)), per_second * workers)
        self.line = HandshakeQueue(RateLimiter(per_second), turns, per_second, seconds)
        self.entered: list[int] = []
        self.refused: dict[int, int] = {}
        self.news = asyncio.Event()
        self.on_enter: Callable[[], None] = lambda: None

    def ask(self, key: int, name: int = -1) -> Ticket | None:
        name = key if name < 0 else name

        def enter() -> None:
            self.entered.append(name)
            self.on_enter()
            self.news.set()

        return self.line.ask(key, enter, lambda seconds: self.refused.__setitem__(name, seconds))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.entered) < count:
                self.news.clear()
                await self.news.wait()


async def test_while_there_is_budget_nobody_waits() -> None:
    door = Door(1000, 1.0)
    assert [door.ask(key) for key in range(1, 11)] == [None] * 10
    assert door.entered == list(range(1, 11))


async def test_all_come_in_one_after_the_other_at_the_rate() -> None:
    door, begun = Door(200, 5.0), time.monotonic()
    for key in range(1, 101):
        door.ask(key)
    assert door.line.length == pytest.approx(90, abs=2)
    await door.until(100)
    assert time.monotonic() - begun > 80 / 200
    assert (door.entered, door.refused, door.line.length) == (list(range(1, 101)), {}, 0)


async def test_those_for_whom_there_is_no_room_are_told_when_to_come() -> None:
    """One after the other, with half of the time that they may stand here to spare."""
    door = Door(10, 2.0)
    for key in range(1, 61):
        door.ask(key)
    told = list(door.refused.values())
    assert set(door.entered) | set(door.refused) < set(range(1, 61))
    assert len(told) == pytest.approx(39, abs=2)
    assert told == sorted(told)
    assert told == pytest.approx([1 + number / 10 for number in range(len(told))], abs=1.5)


async def test_who_asks_again_and_again_is_no_sooner_there_and_makes_nobody_later() -> None:
    door = Door(10, 1.0)
    for key in range(1, 61):
        door.ask(key)
    first = dict(door.refused)
    for _ in range(100):
        for key in first:
            assert door.ask(key) is None
    assert door.refused == pytest.approx(first, abs=1)
    door.ask(1000)
    assert door.refused[1000] <= max(first.values()) + 1


async def test_who_comes_at_its_turn_stands_there_however_many_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("vizora_rt.net.access.handshake_queue.time.monotonic", lambda: now)
    door = Door(10, 2.0)
    for key in range(1, 61):
        door.ask(key)
    (last, told) = list(door.refused.items())[-1]
    now += told
    for key in range(1000, 2000):
        door.ask(key)
    assert door.ask(last) is not None


async def test_a_turn_is_kept_by_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    now, memory = time.monotonic(), memoryview(bytearray(MEMORY_BYTES))
    monkeypatch.setattr("vizora_rt.net.access.handshake_queue.time.monotonic", lambda: now)
    one, other = Door(10, 1.0, memory, workers=2), Door(10, 1.0, memory, workers=2)
    for key in range(1, 101):
        one.ask(key)
    for key in range(1001, 1101):
        other.ask(key)
    (key, told) = list(one.refused.items())[50]
    assert other.ask(key) is None
    assert other.refused[key] == told
    now += told
    assert other.ask(key) is not None


async def test_who_leaves_takes_nothing_of_the_budget() -> None:
    door = Door(50, 10.0)
    places = [door.ask(key) for key in range(1, 201)]
    waiting = [place for place in places if place is not None]
    for place in waiting[:-1]:
        place.leave()
        place.leave()
    assert door.line.length == 1
    await door.until(200 - len(waiting) + 1)
    assert door.entered[-1] == 200
    assert door.line.length == 0


async def test_who_has_not_said_who_it_is_waits_too() -> None:
    door = Door(100, 1.0)
    for name in range(1, 301):
        door.ask(0, name)
    assert len(door.refused) == pytest.approx(190, abs=5)
    assert set(door.refused.values()) <= {1}
    await door.until(300 - len(door.refused))
    assert door.entered == sorted(door.entered)


async def test_behind_a_slow_store_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake_queue, "ASKED", 5)
    door = Door(100_000, 10.0)
    door.on_enter = door.line.asks
    for key in range(1, 21):
        door.ask(key)
    assert door.entered == [1, 2, 3, 4, 5]
    for answers in range(1, 16):
        door.line.answered()
        await door.until(5 + answers)
    assert door.entered == list(range(1, 21))


async def test_the_loop_serves_others_meanwhile() -> None:
    """A few in each turn of it."""
    door, turns = Door(100_000, 10.0), 0
    door.line._asked = handshake_queue.ASKED
    for key in range(1, 161):
        door.ask(key)
    door.line.answered()
    while len(door.entered) < 160:
        before = len(door.entered)
        await asyncio.sleep(0)
        assert len(door.entered) - before <= handshake_queue.AT_ONCE
        turns += 1
    assert turns >= 160 / handshake_queue.AT_ONCE


async def test_all_are_sent_away() -> None:
    door = Door(1, 5.0)
    for key in range(1, 5):
        door.ask(key)
    door.line.clear()
    assert (door.entered, door.refused, door.line.length) == ([1], {2: 1, 3: 1, 4: 1}, 0)


async def test_without_a_limit_nobody_waits() -> None:
    door = Door(0, 5.0)
    for key in range(1, 1001):
        door.ask(key)
    assert door.entered == list(range(1, 1001))


async def test_nobody_has_to_be_let_stand() -> None:
    door = Door(10, 0.0)
    for key in range(1, 31):
        door.ask(key)
    assert door.entered == [1]
    assert list(door.refused.values()) == [1 + number // 10 for number in range(29)]
