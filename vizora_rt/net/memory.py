"""How much memory Redis uses, and whether it deletes keys when it is full. One worker of a node asks now and then."""

from typing import Final

from vizora_rt.metrics import Metrics
from vizora_rt.net.store import Store
from vizora_rt.net.timers import Wheel
from vizora_rt.wire.resp import pack

FIRST: Final = 1.0
EVERY: Final = 15.0
"""Prometheus' usual scrape interval."""

INFO: Final = pack("INFO", "memory")
USED: Final = b"used_memory:"
POLICY: Final = b"maxmemory_policy:"
NOEVICTION: Final = b"noeviction"


class Memory:
    """The gauges, an entry of the timer wheel."""

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
        used = fields(reply, USED)
        if used:
            self._metrics.gauge("redis_memory_bytes").value = max(map(int, used))
        policies = evicting(reply)
        if policies is not None:
            self._metrics.gauge("redis_evicts").value = int(bool(policies))


def evicting(info: object) -> list[str] | None:
    """The policies in INFO by which a server deletes keys when its memory is full; None when INFO says no policy.

    The answer of a cluster has the INFO of each shard.
    """
    policies = fields(info, POLICY) if isinstance(info, bytes) else []
    if not policies:
        return None
    return sorted({policy.decode(errors="replace") for policy in policies if policy != NOEVICTION})


def fields(info: bytes, name: bytes) -> list[bytes]:
    """The values of a field of INFO, of each server one."""
    return [line.removeprefix(name) for line in info.split(b"\r\n") if line.startswith(name)]
