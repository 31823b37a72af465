"""One coarse timer wheel per worker: thousands of entries, one `call_later` a tick.

An entry is any object with `on_timer(now)`, which answers in how many seconds it wants to be called again, or None to
be dropped. Nobody cancels or moves an entry: a connection that heard from its peer says so when its turn comes, and
one that is gone drops out then. So life on a connection costs its timer nothing, and an entry costs eight bytes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from math import ceil
from typing import Final, Protocol

from vizora_rt.telemetry import logs

log = logs.logger("timers")

TICK: Final = 0.5
"""Seconds. A 25 s ping that comes up to half a second late is still well before any proxy's 30 or 60 s idle limit."""

BATCH: Final = 256
"""Entries run in one turn of the loop: 0.2 ms when they only look at the clock, a system call each when they ping."""


class Timed(Protocol):
    """What a wheel calls."""

    def on_timer(self, now: float) -> float | None:
        """Act on the time; return the delay until the next call in seconds, None for never."""


class Wheel:
    """Calls entries not before their time and at most a tick, and the work of the others then due, after it."""

    def __init__(self, clock: Callable[[], float], tick: float = TICK, batch: int = BATCH) -> None:
        self.now = clock()
        """Seconds, as of the last tick: the time for whoever needs no better one."""
        self._clock = clock
        self._tick = tick
        self._batch = batch
        self._turned = int(self.now // tick)
        self._slots: dict[int, list[Timed]] = {}
        self._due: deque[Timed] = deque()
        self._handle: asyncio.Handle | None = None
        self._rest: asyncio.Handle | None = None

    def __len__(self) -> int:
        """How many entries wait."""
        return sum(map(len, self._slots.values())) + len(self._due)

    def add(self, timed: Timed, delay: float) -> None:
        """Call `timed` in `delay` seconds."""
        self._place(timed, self._clock() + delay)

    def start(self) -> None:
        """Tick on the running loop until `stop`."""
        self._handle = asyncio.get_running_loop().call_later(self._tick, self._on_tick)

    def stop(self) -> None:
        """Tick no more and let go of all entries: they may refer to whole connections."""
        for handle in (self._handle, self._rest):
            if handle is not None:
                handle.cancel()
        self._handle = self._rest = None
        self._slots.clear()
        self._due.clear()

    def turn(self) -> bool:
        """Take what is due by now and run a batch of it; return whether some of it is left for the next call."""
        self.now = now = self._clock()
        current = int(now // self._tick)
        while self._turned < current:
            self._turned += 1
            self._due.extend(self._slots.pop(self._turned, ()))
        failed: Exception | None = None
        failures = 0
        for _ in range(self._batch):
            if not self._due:
                break
            timed = self._due.popleft()
            try:
                delay = timed.on_timer(now)
            except Exception as error:
                # A fault in one entry must not cost the others their turn.
                failed = error
                failures += 1
                continue
            if delay is not None:
                self._place(timed, now + delay)
        if failed is not None:
            # One line a batch: a fault that all entries share must not turn into a flood of tracebacks.
            log.exception("timer failed", failed, entries=failures)
        return bool(self._due)

    def _place(self, timed: Timed, when: float) -> None:
        # Never into a slot that has been taken: it would wait for ever.
        slot = max(ceil(when / self._tick), self._turned + 1)
        entries = self._slots.get(slot)
        if entries is None:
            self._slots[slot] = [timed]
        else:
            entries.append(timed)

    def _on_tick(self) -> None:
        self.start()
        if self._rest is None:
            self._run()

    def _run(self) -> None:
        self._rest = None
        if self.turn():
            self._rest = asyncio.get_running_loop().call_soon(self._run)
