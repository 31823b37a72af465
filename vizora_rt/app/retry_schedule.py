"""Whose turn is it? Who comes while the node has no time gets a turn, one however often it asks, and keeps it.

The turns of a node lie as far apart as its budget asks for. They stand in memory that its workers share: whoever was
sent away by one may come back to another. Nothing is locked. Two workers that write in the same moment give one turn
twice, or forget one: then somebody waits longer, as without this table.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

from vizora_rt.app.limits import MAX_RETRY_SECONDS

ENTRIES: Final = 65_536
"""Devices that wait for one node: more than the descriptors of most allow. Those beyond take the places of others."""

PROBES: Final = 8
"""Entries that a device may stand in. With half of them taken, one in a thousand finds all eight taken."""

MEMORY_BYTES: Final = 16 * (1 + ENTRIES)
"""A head, then two numbers each: which device, and its turn."""

KEPT_SECONDS: Final = 60.0
"""For how long a turn that has come waits for its device. A player that backs off comes once in that time."""


def key_of(device_id: str) -> int:
    """What a device is remembered by: 64 bits, the same in each worker, never 0."""
    return int.from_bytes(hashlib.blake2b(device_id.encode(), digest_size=8).digest()) or 1


class RetrySchedule:
    """The turns of one node. Times are seconds of a clock that its workers share, and not near its beginning."""

    __slots__ = ("_gap", "_keys", "_times")

    def __init__(self, memory: memoryview, per_second: float) -> None:
        """`memory`: MEMORY_BYTES, zero when nobody has a turn. `per_second`: what the node takes, 0 for any number."""
        self._keys = memory.cast("Q")
        self._times = memory.cast("d")
        self._gap = 1 / per_second if per_second else 0.0

    def take(self, key: int, now: float) -> float:
        """When the turn of a device is: the one that it has, else the next one. A time in the past is one it missed."""
        keys, times, place, oldest = self._keys, self._times, 0, now + 2 * MAX_RETRY_SECONDS
        for at in _places(key):
            if keys[at] == key and times[at + 1] > now - KEPT_SECONDS:
                return times[at + 1]
            turn = times[at + 1] if keys[at] and keys[at] != key else 0.0
            if turn < oldest:
                place, oldest = at, turn
        turn = self.next(now)
        keys[place], times[place + 1] = key, turn
        return turn

    def last(self, now: float) -> float:
        """The last turn that was given out."""
        return max(self._times[1], now)

    def next(self, now: float) -> float:
        """The next turn, of somebody who is not known. Past a minute they begin anew: there are more than will come."""
        turn = self.last(now) + self._gap
        if turn > now + MAX_RETRY_SECONDS:
            turn = now + self._gap
        self._times[1] = turn
        return turn

    def forget(self, key: int, now: float) -> None:
        """It is in. When it comes again, it is as if it had never been here."""
        if self._times[1] > now - KEPT_SECONDS:  # else there is nobody to forget
            for at in _places(key):
                if self._keys[at] == key:
                    self._keys[at] = 0


def _places(key: int) -> Iterator[int]:
    for probe in range(PROBES):
        yield 2 * (1 + (key + probe) % ENTRIES)
