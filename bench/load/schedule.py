"""When the next message goes: as soon as one is acked, or when the timetable says.

`ClosedLoop` answers every ack with the next message. `OpenLoop` and every other `Timetable` send whatever the server
does, and a latency counts from the time in the timetable, so that a server that stands still cannot hide it by holding
up the load (coordinated omission).
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Final

from bench.load.engine import Connection, Engine
from bench.report.histogram import Latencies

SPIN_NS: Final = 2_000_000
"""The loop's timers have a grain of a millisecond: who wants to be on time spins when it is closer than this."""

GRAIN_NS: Final = 1_000_000

Action = Callable[[int], None]
"""Is told when it was due, in nanoseconds of `perf_counter_ns`."""


class Timetable:
    """Calls its actions at their times, each at an even distance; who comes late does what was missed at once."""

    def __init__(self, lateness: Callable[[], Latencies], spin_ns: int = SPIN_NS) -> None:
        self._lateness = lateness
        self._spin_ns = spin_ns
        self._lines: list[_Line] = []
        self._running = False

    def add(self, rate: float, action: Action) -> None:
        """`action` is due `rate` times a second."""
        self._lines.append(_Line(1e9 / rate, action))

    def start(self) -> None:
        self._running = True
        self._loop = asyncio.get_running_loop()
        begun = perf_counter_ns()
        for line in self._lines:
            line.begun = begun
        self._run()

    def stop(self) -> None:
        self._running = False

    def _run(self) -> None:
        """Do what is due by now; be back in time for what is next."""
        if not self._running or not self._lines:
            return
        now = perf_counter_ns()
        record, ahead = self._lateness().record, 1_000_000_000
        for line in self._lines:
            while (due := line.begun + int(line.count * line.gap)) <= now:
                line.count += 1
                record(now - due)
                line.action(due)
            ahead = min(ahead, due - now)
        if ahead > self._spin_ns or not self._spin_ns:
            self._loop.call_later(max(ahead - self._spin_ns, GRAIN_NS) / 1e9, self._run)
        else:
            self._loop.call_soon(self._run)


class _Line:
    __slots__ = ("action", "begun", "count", "gap")

    def __init__(self, gap: float, action: Action) -> None:
        self.gap = gap
        self.action = action
        self.begun = 0
        self.count = 0


class ClosedLoop:
    """Every connection keeps `in_flight` messages unacked: as fast as the server will go."""

    def __init__(self, frames: Sequence[bytes], in_flight: int) -> None:
        self._next = itertools.cycle(frames).__next__
        self._in_flight = in_flight
        self._running = False

    def start(self, engine: Engine) -> None:
        self._running = True
        for connection in engine.connections:
            self.acked(connection, self._in_flight)

    def stop(self) -> None:
        self._running = False

    def acked(self, connection: Connection, count: int) -> None:
        if self._running:
            now = perf_counter_ns()
            if count == 1:
                connection.send(self._next(), (now,))
            else:
                connection.send(b"".join(self._next() for _ in range(count)), (now,) * count)


class OpenLoop:
    """`rate` messages a second in all, evenly spaced, one connection after the other."""

    def __init__(self, frames: Sequence[bytes], rate: float, lateness: Callable[[], Latencies] | None = None) -> None:
        self._next = itertools.cycle(frames).__next__
        self._rate = rate
        self._lateness = lateness
        self._timetable: Timetable | None = None

    def start(self, engine: Engine) -> None:
        turns, following = itertools.cycle(engine.connections).__next__, self._next
        self._timetable = Timetable(self._lateness or (lambda: engine.lateness))
        self._timetable.add(self._rate, lambda due: turns().send(following(), (due,)))
        self._timetable.start()

    def stop(self) -> None:
        if self._timetable is not None:
            self._timetable.stop()

    def acked(self, connection: Connection, count: int) -> None:
        pass
