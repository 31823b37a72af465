"""How often may it? The generic cell rate algorithm (GCRA, ITU-T I.371): one number per key, no timers.

The number is the theoretical arrival time, in seconds of any one clock: a bucket of `capacity` cells that refills at
`per_minute`. A rate of 0 switches the limit off.
"""

from collections.abc import Hashable


class Rate:
    """The arithmetic, for callers that keep the number themselves (one per device on the hot path)."""

    __slots__ = ("burst", "interval")

    def __init__(self, per_minute: float, capacity: float) -> None:
        self.interval = 60 / per_minute if per_minute else 0.0
        self.burst = self.interval * capacity

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
                self._arrivals = {k: a for k, a in self._arrivals.items() if a > now}
                self._sweep_at = max(1024, 2 * len(self._arrivals))
        return wait

    def __len__(self) -> int:
        return len(self._arrivals)
