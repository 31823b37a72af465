"""Keeps a line of the log from filling it: three a minute of each kind, and how many were left out."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

BURST: Final = 3
SECONDS: Final = 60.0
"""A fault that comes again each second writes three lines and then three a minute, not thousands an hour."""


class Quiet:
    """Counts lines by kind. There are as many kinds as places that ask, never what a peer sent."""

    __slots__ = ("_clock", "_left_out", "_said")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, deque[float]] = {}
        self._left_out: dict[str, int] = {}

    def may_say(self, kind: str, burst: int = BURST) -> bool:
        """Whether a line of this kind may be written now; `burst`: lines a minute."""
        said = self._said.setdefault(kind, deque(maxlen=burst))
        now = self._clock()
        if len(said) == burst and now - said[0] < SECONDS:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        said.append(now)
        return True

    def left_out(self, kind: str) -> int | None:
        """How many lines of this kind were not written since the last one that was; None for none. Starts anew."""
        return self._left_out.pop(kind, None)
