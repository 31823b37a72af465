"""When the clients of a worker that ends are told so, and when each shall come back: both evenly spread.

Whoever serves them next takes so many handshakes a second and no more; a fleet that returns as one wave would be sent
away again.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

LEAST_PER_SECOND: Final = 100
"""Clients told a second, at least: nobody waits for a few screens to leave one after the other."""

SHARE: Final = 0.8
"""Of the handshakes that a node takes; the rest is for who comes by itself."""

FIRST_MS: Final = 100
"""Before the first return: a connection is closed properly before the next one is opened."""


class ReconnectSchedule(NamedTuple):
    """Told after `seconds`; back `retry_after_ms` later."""

    seconds: float
    retry_after_ms: int


def reconnect_schedules(count: int, seconds: float, closed: float, per_second: float) -> Iterator[ReconnectSchedule]:
    """One for each of `count` clients, the last told after `seconds` at the latest.

    `closed`: seconds between the last departure and the first return, when nobody serves. `per_second`: handshakes that
    can be taken then, 0 for any number.
    """
    leaving = min(seconds, count / LEAST_PER_SECOND)
    returning = count / (per_second * SHARE) if per_second else 0.0
    if not closed:
        returning = max(returning, leaving)  # who is told first is back while others have yet to be told
    begin = leaving + closed if closed else 0.0
    for number in range(count):
        told = leaving * number / count
        yield ReconnectSchedule(told, FIRST_MS + int((begin + returning * number / count - told) * 1000))
