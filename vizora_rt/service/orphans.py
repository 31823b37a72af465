"""Reaps what the first process of a container inherits: processes whose parent has ended.

Without it they stay zombies until the container has no process number left. Only for PID 1; elsewhere the machine's own
init does it. The children of other parts of this process are never taken from them: these are named by `ours`, and one
that was forked a moment ago and is not named yet is safe, for an orphan is reaped only when it is seen a second time.
"""

import os
from collections.abc import Container
from typing import Final

PAUSE: Final = 1.0
"""Seconds between the two looks. A fork is named by the part that did it within some milliseconds."""

A_LOOK: Final = 100
"""Zombies that are reaped in one look, 0.1 ms each: a container that makes more of them gets them in the next."""


class Orphans:
    """Those of this process. Times are of any one clock, in seconds."""

    __slots__ = ("_pid", "_since")

    def __init__(self) -> None:
        self._pid = 0
        self._since = 0.0

    def reap(self, ours: Container[int], now: float) -> list[int]:
        """Reap what has been a zombie for a while, and return its process ids. Never blocks."""
        reaped: list[int] = []
        while len(reaped) < A_LOOK:
            pid = _zombie()
            if not pid or pid in ours:
                break  # or one of ours is first: the part that it belongs to reaps it, then comes what is behind
            if pid != self._pid:
                self._pid, self._since = pid, now
            if now < self._since + PAUSE and not reaped:
                break
            os.waitpid(pid, os.WNOHANG)
            reaped.append(pid)
        return reaped


def _zombie() -> int:
    """The process id of a child that has ended, which stays one; 0 when there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return found.si_pid if found is not None else 0
