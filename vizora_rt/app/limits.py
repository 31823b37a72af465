"""How often may it? The generic cell rate algorithm (GCRA, ITU-T I.371): one number per key, no timers.

The number is the theoretical arrival time, in seconds of any one clock: a bucket of `capacity` cells that refills at
`per_minute`. A rate of 0 switches the limit off.
"""

from collections.abc import Hashable
from itertools import islice
from typing import Final

MAX_KEYS: Final = 100_000
"""Keys that a meter remembers, about 10 MB. A worker takes fewer handshakes in the minute that the slowest rate looks
back; were there more keys, the oldest would be let in again early."""

SLACK: Final = 0.001
"""Part of one cell by which a bucket is larger: sums of times round, and the last cell of a bucket is still there."""


class Rate:
    """The arithmetic, for callers that keep the number themselves (one per device on the hot path)."""

    __slots__ = ("burst", "interval")

    def __init__(self, per_minute: float, capacity: float) -> None:
        self.interval = 60 / per_minute if per_minute else 0.0
        self.burst = self.interval * (capacity + SLACK)

    def wait(self, arrival: float, now: float) -> float:
        """Seconds until one more is allowed; 0.0 means now, and the caller stores `next`."""
        return max(0.0, arrival + self.interval - now - self.burst) if arrival > now else 0.0

    def next(self, arrival: float, now: float) -> float:
        return (arrival if arrival > now else now) + self.interval


class Meter:
    """A rate per key. A key that has caught up with the clock is forgotten, so only the recent ones take memory."""

    __slots__ = ("_arrivals", "_rate", "_sweep_at")

    def __init__(self, per_minute: int) -> None:
        self._rate = Rate(per_minute, per_minute)
        self._arrivals: dict[Hashable, float] = {}
        self._sweep_at = 1024

    def take(self, key: Hashable, now: float) -> float:
        """0.0 when allowed, else the seconds to wait."""
        if not self._rate.interval:
            return 0.0
        arrival = self._arrivals.get(key, 0.0)
        wait = self._rate.wait(arrival, now)
        if not wait:
            self._arrivals[key] = self._rate.next(arrival, now)
            if len(self._arrivals) >= self._sweep_at:
                self._sweep(now)
        return wait

    def _sweep(self, now: float) -> None:
        """Forget who has caught up. What is left may double before the next sweep, so one costs little per key."""
        recent = {key: arrival for key, arrival in self._arrivals.items() if arrival > now}
        surplus = len(recent) - MAX_KEYS // 2
        self._arrivals = dict(islice(recent.items(), surplus, None)) if surplus > 0 else recent
        self._sweep_at = max(1024, 2 * len(self._arrivals))

    def __len__(self) -> int:
        return len(self._arrivals)
