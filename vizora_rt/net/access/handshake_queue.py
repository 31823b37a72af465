"""The line at the door: handshakes over the budget wait here for their turn, some seconds at most; more are sent away.

To hold a handshake that has come costs nothing. To refuse it costs most of what it costs to take it, and a
player that does not hear when to come knocks again and again; whoever stands here knocks no more.

They are let in by their turns, as the budget allows, a few in each turn of the loop and no more than the store keeps up
with: a node that has other work takes as many as it can bear.
"""

import asyncio
import random
import time
from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil
from time import perf_counter_ns
from typing import Final

from vizora_rt.app.limits import RateLimiter
from vizora_rt.app.retry_schedule import RetrySchedule

AT_ONCE: Final = 16
"""Let in per turn of the loop, 3 ms of its time: for as long a heartbeat may wait for them."""

ASKED: Final = 256
"""Let in and not yet answered by the store: a tenth of a second of the usual budget. The others wait for it here."""

TOGETHER: Final = 0.005
"""Seconds. Who comes sooner after the last ones waits for as long, and shares with all who do a write to Redis, its
replies and warm caches: of 2,000 handshakes a second each takes 0.6 of the CPU. Who comes alone waits for nobody."""

OnAdmitted = Callable[[], None]
OnRefused = Callable[[int], None]
"""Is told the seconds after which to come again."""
OnQueued = Callable[["Ticket"], None]
"""Is given the place of who waits, to be left when it is gone."""


class Ticket:
    """Somebody in the line, until it is let in, sent away, or gone."""

    __slots__ = ("_queue", "asked", "key", "on_admitted", "on_refused", "waited")

    def __init__(self, line: "HandshakeQueue", key: int, enter: OnAdmitted, refuse: OnRefused) -> None:
        self._queue = line
        self.key = key
        self.on_admitted: OnAdmitted | None = enter
        self.on_refused: OnRefused | None = refuse
        self.asked = perf_counter_ns()
        self.waited = 0
        """Nanoseconds, once it was let in."""

    def leave(self) -> None:
        """It waits no longer: nothing is called any more, and nothing kept."""
        if self.on_admitted is not None:
            self.on_admitted = self.on_refused = None
            self._queue.length -= 1


class HandshakeQueue:
    """Of one worker."""

    def __init__(self, budget: RateLimiter, turns: RetrySchedule, per_second: float, seconds: float) -> None:
        """`seconds`: how long somebody stands here, 0 for nobody at all."""
        self._budget = budget
        self._retry_schedule = turns
        self._seconds = seconds
        self._room = per_second * seconds / 2
        self._tickets: list[tuple[float, int, Ticket]] = []
        self._number = 0
        self._handle: asyncio.Handle | None = None
        self._asked = 0
        self.length = 0

    def ask(self, key: int, enter: OnAdmitted, refuse: OnRefused) -> Ticket | None:
        """One of the two is called once: `enter`, now or at its turn, or `refuse` at once. `key` is a device's, 0 of
        somebody who has not said who it is. A place when it waits."""
        now = time.monotonic()
        if not self.length and self._asked < ASKED and self._budget.take(now):
            self._retry_schedule.forget(key, now)
            enter()
            return None
        turn = self._retry_schedule.take(key, now) if key else self._retry_schedule.last(now)
        ahead = turn - now
        # Whose turn is near stands here. So do others while there is room: who has time sends nobody away.
        if self._seconds and (ahead <= self._seconds or self.length < self._room):
            place = Ticket(self, key, enter, refuse)
            if not key:
                turn = self._retry_schedule.next(now)
            self._number += 1
            self.length += 1
            heappush(self._tickets, (turn, self._number, place))
            self._schedule()
            return place
        if not key:
            ahead *= random.random()  # no turn is kept for who cannot be told from the next one
        # To come when half of the time is left that one may stand here: early or late, it is there at its turn.
        refuse(max(1, ceil(ahead - self._seconds / 2)))
        return None

    def asks(self) -> None:
        """The store is asked about somebody who was let in."""
        self._asked += 1

    def answered(self) -> None:
        """It answered."""
        self._asked -= 1
        if self.length:
            self._schedule()

    def clear(self) -> None:
        """Send all away."""
        places, self._tickets = self._tickets, []
        for _, _, place in places:
            refuse = place.on_refused
            place.leave()
            if refuse is not None:
                refuse(1)

    def _schedule(self, seconds: float = 0.0) -> None:
        if self._handle is None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(seconds, self._run) if seconds else loop.call_soon(self._run)

    def _run(self) -> None:
        self._handle = None
        now, places = time.monotonic(), self._tickets
        for _ in range(AT_ONCE):
            while places and places[0][2].on_admitted is None:
                heappop(places)  # it left
            if not places or self._asked >= ASKED:
                return
            if wait := self._budget.wait(now):
                self._schedule(max(wait, TOGETHER))
                return
            self._budget.take(now)
            place = heappop(places)[2]
            enter = place.on_admitted
            place.waited = perf_counter_ns() - place.asked
            place.leave()
            self._retry_schedule.forget(place.key, now)
            if enter is not None:
                enter()
        self._schedule()
