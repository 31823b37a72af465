"""Gauges of Redis: the backlog of each consumer group, plays that are missing, used memory."""

from itertools import islice
from typing import Final

from vizora_rt.app import plays
from vizora_rt.app.plays import PlayRecorder
from vizora_rt.app.state import Device
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.resp import pack

MEMORY_FIRST: Final = 1.0
MEMORY_EVERY: Final = 15.0
"""Prometheus' usual scrape interval."""

INFO_MEMORY: Final = pack("INFO", "memory")
USED_MEMORY: Final = b"used_memory:"
POLICY: Final = b"maxmemory_policy:"
NOEVICTION: Final = b"noeviction"


class Memory:
    """The gauges, an entry of the timer wheel."""

    __slots__ = ("_metrics", "_store")

    def __init__(self, metrics: Metrics, store: RedisClient, wheel: Wheel) -> None:
        self._metrics = metrics
        self._store = store
        wheel.add(self, MEMORY_FIRST)

    def on_timer(self, now: float) -> float | None:
        self._store.submit("info", INFO_MEMORY, self._on_reply)
        return MEMORY_EVERY

    def _on_reply(self, reply: object) -> None:
        if not isinstance(reply, bytes):
            return
        used = fields(reply, USED_MEMORY)
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


BACKLOG_SECONDS: Final = 15.0
"""Between two looks at the groups: Prometheus' usual scrape interval."""

BACKLOG: Final = """
-- KEYS stream -> {group, entries that it has not taken, ...}
local rows = {}
if redis.call('EXISTS', KEYS[1]) == 0 then return rows end
for _, reply in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #reply, 2 do group[reply[i]] = reply[i + 1] end
  -- Before version 7, and after entries were taken out of its middle, a stream cannot tell: then at most all of it.
  local behind = group.lag or redis.call('XLEN', KEYS[1])
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if not group.lag and last and last[1] == group['last-delivered-id'] then behind = 0 end
  rows[#rows + 1] = group.name
  rows[#rows + 1] = behind + group.pending
end
return rows
"""

MISSING_SECONDS: Final = 1.0
"""From a device's connection until the gauge knows of its holes, at most: soon enough for any scrape."""
MISSING_A_TURN: Final = 1000
MISSING_A_CALL: Final = 100
MISSING_PAUSE: Final = 0.5
"""20,000 that come back at once are asked for in ten seconds, with 20 commands a second."""

MISSING: Final = """
-- KEYS seen ... -> of each, how many plays the device has numbered and not delivered
local found = {}
for i, key in ipairs(KEYS) do found[i] = tonumber(redis.call('HGET', key, 'missing') or 0) or 0 end
return found
"""


class Backlog:
    """The gauge of each group's lag, over all partitions. An entry of the timer wheel; one worker of a node has it."""

    __slots__ = ("_metrics", "_plays", "_store")

    def __init__(self, metrics: Metrics, recorder: PlayRecorder, store: RedisClient, wheel: Wheel) -> None:
        self._metrics = metrics
        self._plays = recorder
        self._store = store
        wheel.add(self, BACKLOG_SECONDS)

    def on_timer(self, now: float) -> float | None:
        sums: dict[str, int] = {}
        waiting = self._plays.partitions

        def on_rows(reply: object) -> None:
            nonlocal waiting
            waiting -= 1
            if isinstance(reply, list):
                for name, behind in zip(reply[::2], reply[1::2], strict=True):
                    group = name.decode(errors="replace")
                    sums[group] = sums.get(group, 0) + behind
            if not waiting:
                self._metrics.recount("plays_backlog")
                for group, behind in sums.items():
                    self._metrics.gauge("plays_backlog", group).value += behind

        for number in range(self._plays.partitions):
            if not self._store.eval("backlog", (plays.stream_key(number),), (), on_rows):
                waiting -= 1
        return BACKLOG_SECONDS


class Missing:
    """Reads back how many plays are missing of devices that have just connected: an ack says so again only when they
    play something. Of all newcomers of a partition together, and behind the handshake. An entry of the timer wheel."""

    __slots__ = ("_new", "_plays", "_store")

    def __init__(self, recorder: PlayRecorder, store: RedisClient, wheel: Wheel) -> None:
        self._plays = recorder
        self._store = store
        self._new: dict[Device, None] = {}
        wheel.add(self, MISSING_SECONDS)

    def expect(self, device: Device) -> None:
        """The device has connected here."""
        self._new[device] = None

    def on_timer(self, now: float) -> float | None:
        partitions = self._plays.partitions
        if not partitions or not self._store.available:
            # Those who have gone would be kept for as long as Redis is away.
            self._new = {device: None for device in self._new if device.peer is not None}
            return MISSING_SECONDS
        groups: dict[int, list[Device]] = {}
        for device in list(islice(self._new, MISSING_A_TURN)):
            del self._new[device]
            if device.peer is not None:
                groups.setdefault(plays.partition(device.id.encode(), partitions), []).append(device)
        for group in groups.values():
            for start in range(0, len(group), MISSING_A_CALL):
                self._ask(group[start : start + MISSING_A_CALL], partitions)
        return MISSING_PAUSE if self._new else MISSING_SECONDS

    def _ask(self, devices: list[Device], partitions: int) -> None:
        def on_reply(reply: object) -> None:
            if isinstance(reply, list):
                # Replies of a partition come in order: no ack of a later play has been told yet.
                for device, missing in zip(devices, reply, strict=True):
                    device.missing = missing
            else:
                self._new.update(dict.fromkeys(devices))

        keys = tuple(plays.seen_key(device.id.encode(), partitions) for device in devices)
        if not self._store.eval("missing", keys, (), on_reply):
            self._new.update(dict.fromkeys(devices))
