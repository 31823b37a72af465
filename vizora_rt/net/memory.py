"""How much memory Redis says it uses, for an alert before it is full: one worker of a node asks now and then."""

from typing import Final

from vizora_rt.metrics import Metrics
from vizora_rt.net.store import Store
from vizora_rt.net.timers import Wheel
from vizora_rt.wire.resp import pack

FIRST: Final = 1.0
EVERY: Final = 15.0
"""Prometheus' usual scrape interval."""

INFO: Final = pack("INFO", "memory")
FIELD: Final = b"used_memory:"


class Memory:
    """The gauge, an entry of the timer wheel."""

    __slots__ = ("_metrics", "_store")

    def __init__(self, metrics: Metrics, store: Store, wheel: Wheel) -> None:
        self._metrics = metrics
        self._store = store
        wheel.add(self, FIRST)

    def on_timer(self, now: float) -> float | None:
        self._store.submit("info", INFO, self._on_reply)
        return EVERY

    def _on_reply(self, reply: object) -> None:
        if not isinstance(reply, bytes):
            return
        for line in reply.split(b"\r\n"):
            if line.startswith(FIELD):
                self._metrics.gauge("redis_memory_bytes").value = int(line.removeprefix(FIELD))
