"""Wrong keys: each is counted and named in the log, and an address that shows many of them is answered late."""

import asyncio
import hmac
from typing import Final, Literal

from vizora_rt.app.limits import KeyedRateLimiter
from vizora_rt.errors import Refusal
from vizora_rt.net.server.responses import Answer, Response, refuse
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.metrics import Metrics

PER_MINUTE: Final = 10
"""Wrong keys of an address that are answered at once. A backend that was given the wrong one is told without delay; one
that goes through a list is not."""

LATE_SECONDS: Final = 1.0
"""What an answer beyond these waits. sshd and sudo wait 2 to 3 s; here a connection is taken meanwhile."""

Key = Literal["internal", "metrics"]


class Keys:
    """Those that one worker was shown."""

    def __init__(self, metrics: Metrics, wheel: Wheel) -> None:
        self._metrics = metrics
        self._wheel = wheel
        self._wrong = KeyedRateLimiter(PER_MINUTE)

    @staticmethod
    def same(given: str, wanted: str) -> bool:
        """Compare in a time that tells nothing. No key fits where none is wanted."""
        return bool(wanted) and hmac.compare_digest(given.encode("latin-1", "replace"), wanted.encode())

    def refuse_wrong(self, which: Key, address: str, path: str, refusal: Refusal) -> Answer:
        """The answer to a caller of `address` with a wrong key."""
        self._metrics.counter("http_wrong_keys_total", which).value += 1
        fields = {"key": which, "address": address, "path": path}
        logs.limited(("wrong key", which), "WARNING", "keys", "wrong key", fields)
        return self._late(refusal) if self._wrong.take(address, self._wheel.now) else refuse(refusal)

    @staticmethod
    async def _late(refusal: Refusal) -> Response:
        await asyncio.sleep(LATE_SECONDS)
        return refuse(refusal)
