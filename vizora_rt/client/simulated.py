"""A simulated screen: a player that plays nothing, but tells of itself as one in the field does. For `demo`."""

import random
import time
from typing import Any

from vizora_rt.client.player import Player, Timing

CONTENTS = ("welcome", "menu", "weather", "offers", "safety")
SECONDS_EACH = 20.0
USUAL = Timing()


class SimulatedScreen(Player):
    """Its figures wander, its playlist goes round."""

    __slots__ = ("_cpu", "_memory", "_started")

    def __init__(self, url: str, token: str, timing: Timing = USUAL) -> None:
        super().__init__(url, token, timing=timing)
        self._cpu = random.uniform(10, 40)
        self._memory = random.uniform(30, 60)
        # Somewhere in its playlist, as if it had run for a while.
        self._started = time.monotonic() - random.uniform(0, 3600)

    def heartbeat(self) -> dict[str, Any]:
        self._cpu = wander(self._cpu, 5.0)
        self._memory = wander(self._memory, 1.0)
        uptime = time.monotonic() - self._started
        turn, position = divmod(uptime, SECONDS_EACH)
        return {
            "metrics": {"cpuUsage": round(self._cpu, 1), "memoryUsage": round(self._memory, 1), "temperature": 45.0},
            "currentContent": {
                "contentId": CONTENTS[int(turn) % len(CONTENTS)],
                "playlistId": "demo",
                "status": "playing",
                "playbackPosition": round(position, 1),
            },
            "uptime": round(uptime),
            "appVersion": "demo",
            "screenState": "on",
        }


def wander(value: float, step: float) -> float:
    """`value` a little up or down, within 0 and 100 percent."""
    return min(100.0, max(0.0, value + random.uniform(-step, step)))
