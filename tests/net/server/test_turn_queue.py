"""The queue of clients that have more to do than a turn allows: round after round, and a bounded time of each turn."""

import asyncio

import pytest

from vizora_rt.net.server import turn_queue
from vizora_rt.net.server.turn_queue import TurnQueue


class Client:
    """Has so many shares to do."""

    def __init__(self, name: str, shares: int, done: list[str]) -> None:
        self.name = name
        self.shares = shares
        self.done = done

    def take_share(self) -> bool:
        self.done.append(self.name)
        self.shares -= 1
        return self.shares > 0


class Faulty:
    def take_share(self) -> bool:
        raise RuntimeError("for the test")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn has time for one share."""
    monkeypatch.setattr(turn_queue, "TURN_NS", 0)


async def emptied(queue: TurnQueue) -> int:
    """How many turns it took."""
    turns = 0
    while len(queue):
        await asyncio.sleep(0)
        turns += 1
    return turns


async def test_each_has_its_share_before_any_has_a_second_one() -> None:
    queue, done = TurnQueue(), list[str]()
    for name, shares in (("a", 3), ("b", 1), ("c", 2)):
        queue.add(Client(name, shares, done))
    await emptied(queue)
    assert done == ["a", "b", "c", "a", "c", "a"]


async def test_a_turn_ends_when_its_time_is_over(short: None) -> None:
    queue, done = TurnQueue(), list[str]()
    queue.add(Client("a", 100, done))
    queue.add(Client("b", 100, done))
    assert await emptied(queue) >= 199  # one share a turn
    assert done == ["a", "b"] * 100


async def test_shares_that_take_no_time_are_done_in_one_turn() -> None:
    queue, done = TurnQueue(), list[str]()
    for number in range(10):
        queue.add(Client(str(number), 1, done))
    assert await emptied(queue) == 1


async def test_nothing_is_done_in_the_turn_that_asks_for_it() -> None:
    queue, done = TurnQueue(), list[str]()
    queue.add(Client("a", 1, done))
    assert (done, len(queue)) == ([], 1)
    await emptied(queue)
    queue.add(Client("a", 1, done))
    await emptied(queue)
    assert done == ["a", "a"]


async def test_a_fault_with_one_costs_the_others_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    queue, done = TurnQueue(), list[str]()
    queue.add(Faulty())
    queue.add(Client("a", 2, done))
    await emptied(queue)
    assert done == ["a", "a"]
