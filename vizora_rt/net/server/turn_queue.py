"""Work that one turn of the event loop has no time for: each client gets a share of each turn.

A client that sends more than its share is not read until its share has come round again. Whatever it sends, and however
many do so, a turn is held up for `TURN_NS` and one share more.
"""

import asyncio
from collections import deque
from time import perf_counter_ns
from typing import Final, Protocol

from vizora_rt.telemetry import logs

TURN_NS: Final = 2_000_000
"""Nanoseconds of one turn for all that wait here: a tenth of what a heartbeat may wait for other clients."""

log = logs.logger("turns")


class Waiting(Protocol):
    """A client with more to do than one turn allows."""

    def take_share(self) -> bool:
        """Do a share of the work; whether more is left."""


class TurnQueue:
    """The clients of one worker that have more to do, served one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._handle: asyncio.Handle | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, waiting: Waiting) -> None:
        """Call `take_share` in the next turn, and again until nothing is left. To add it twice is to give it two."""
        self._waiting.append(waiting)
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        until = perf_counter_ns() + TURN_NS
        while self._waiting:
            waiting = self._waiting.popleft()
            try:
                if waiting.take_share():
                    self._waiting.append(waiting)
            except Exception as error:
                # A fault with one client must not cost the others their share.
                log.exception("share failed", error)
            if perf_counter_ns() >= until:
                break
        self._handle = asyncio.get_running_loop().call_soon(self._run) if self._waiting else None
