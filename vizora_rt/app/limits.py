"""How often may it? The generic cell rate algorithm (GCRA, ITU-T I.371): one number per key, no timers.

The number is the theoretical arrival time, in seconds of any one clock: a bucket of `capacity` cells that refills at
`per_minute`. A rate of 0 switches the limit off. `SlidingWindow` is for few keys and small limits: it remembers each
time.
"""

from collections import deque
from collections.abc import Hashable
from itertools import islice
from math import ceil
from typing import Final, Protocol

MAX_KEYS: Final = 100_000
"""Keys that a meter remembers, about 10 MB. A worker takes fewer handshakes in the minute that the slowest rate looks
back; were there more keys, the oldest would be let in again early."""

SLACK: Final = 0.001
"""Part of one cell by which a bucket is larger: sums of times round, and the last cell of a bucket is still there."""

BURST: Final = 0.05
"""Seconds of a budget that may be taken at once, and for which the loop is held up at most. Those beyond wait."""

MAX_RETRY_SECONDS: Final = 60.0
"""Seconds that somebody is sent away for, at most. Whoever stays away longer is a screen that is dark without need."""


class RateState(Protocol):
    """Keeps the theoretical arrival time of its next cell, 0.0 before the first."""

    tat: float


class Rate:
    """The arithmetic, for callers that keep the number themselves (one per device on the hot path)."""

    __slots__ = ("burst", "interval")

    def __init__(self, per_minute: float, capacity: float) -> None:
        self.interval = 60 / per_minute if per_minute else 0.0
        self.burst = self.interval * (capacity + SLACK)

    def wait(self, tat: float, now: float) -> float:
        """Seconds until one more is allowed; 0.0 means now, and the caller stores `next`."""
        return max(0.0, tat + self.interval - now - self.burst) if tat > now else 0.0

    def next(self, tat: float, now: float, cost: float = 1.0) -> float:
        """The arrival time after `cost` cells were taken."""
        return (tat if tat > now else now) + self.interval * cost

    def take(self, sender: RateState, now: float, cost: float = 1.0) -> float:
        """Take `cost` cells of `sender`: 0.0, or the seconds until it has one, and nothing is taken.

        One cell lets a message of any cost in. The rest is owed: `wait` tells when the next one may come. So a message
        that costs more than a bucket holds is not refused for ever.
        """
        if not self.interval:
            return 0.0
        wait = self.wait(sender.tat, now)
        if not wait:
            sender.tat = self.next(sender.tat, now, cost)
        return wait


class KeyedRateLimiter:
    """A rate per key. A key that has caught up with the clock is forgotten, so only the recent ones take memory."""

    __slots__ = ("_rate", "_sweep_at", "_tats")

    def __init__(self, per_minute: int) -> None:
        self._rate = Rate(per_minute, per_minute)
        self._tats: dict[Hashable, float] = {}
        self._sweep_at = 1024

    def take(self, key: Hashable, now: float) -> float:
        """0.0 when allowed, else the seconds to wait."""
        if not self._rate.interval:
            return 0.0
        tat = self._tats.get(key, 0.0)
        wait = self._rate.wait(tat, now)
        if not wait:
            self._tats[key] = self._rate.next(tat, now)
            if len(self._tats) >= self._sweep_at:
                self._sweep(now)
        return wait

    def _sweep(self, now: float) -> None:
        """Forget who has caught up. What is left may double before the next sweep, so one costs little per key."""
        recent = {key: tat for key, tat in self._tats.items() if tat > now}
        surplus = len(recent) - MAX_KEYS // 2
        self._tats = dict(islice(recent.items(), surplus, None)) if surplus > 0 else recent
        self._sweep_at = max(1024, 2 * len(self._tats))

    def __len__(self) -> int:
        return len(self._tats)


class RateLimiter:
    """A rate for all together, and the queue of those for whom nothing was left: each is told when its turn is.

    Turns lie as far apart as the rate asks for, so who was sent away in one wave does not return in one. A turn is no
    promise: one that comes at its time and finds the budget spent by others gets another.
    """

    __slots__ = ("_gap", "_rate", "_retry_at", "_tat")

    def __init__(self, per_second: float) -> None:
        self._rate = Rate(per_second * 60, max(1.0, per_second * BURST))
        self._gap = self._rate.interval or 0.001
        self._tat = self._retry_at = 0.0

    def take(self, now: float) -> bool:
        """Whether there was one left."""
        if not self._rate.interval:
            return True
        if self._rate.wait(self._tat, now):
            return False
        self._tat = self._rate.next(self._tat, now)
        return True

    def wait(self, now: float) -> float:
        """Seconds until one is left; 0.0 when there is one now."""
        return self._rate.wait(self._tat, now)

    def give_back(self) -> None:
        """What was taken was not used."""
        self._tat -= self._rate.interval

    def retry_after(self, now: float) -> int:
        """In how many seconds the one who is sent away now shall come again. Past a minute the queue begins anew: there
        are more in it than will come, or many that do not wait."""
        self._retry_at = max(self._retry_at, now) + self._gap
        if self._retry_at - now > MAX_RETRY_SECONDS:
            self._retry_at = now + self._gap
        return ceil(self._retry_at - now)


class SlidingWindow:
    """At most `limit` in any `seconds`, for each of at most `max_keys` keys, of which the quiet ones are forgotten.

    A bucket would let twice its rate through in the first minute. This is exact.
    """

    __slots__ = ("_limit", "_max_keys", "_seconds", "_times")

    def __init__(self, limit: int, seconds: float, max_keys: int) -> None:
        self._limit = limit
        self._seconds = seconds
        self._max_keys = max_keys
        self._times: dict[Hashable, deque[float]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._times

    def __len__(self) -> int:
        return len(self._times)

    def take(self, key: Hashable, now: float) -> bool:
        """Whether there is room for one more, which then is taken."""
        times = self._times.get(key)
        if times is None:
            if len(self._times) >= self._max_keys:
                self._forget(now)
            if len(self._times) >= self._max_keys:
                return False
            times = self._times[key] = deque(maxlen=self._limit)
        elif len(times) == self._limit and now - times[0] < self._seconds:
            return False
        times.append(now)
        return True

    def _forget(self, now: float) -> None:
        self._times = {key: times for key, times in self._times.items() if now - times[-1] < self._seconds}
