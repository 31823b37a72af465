"""Proof of play as Redis sees it: how many partitions there are, which readers lag behind, what a device has in."""

import asyncio
import time
from itertools import islice
from typing import Any, Final

from vizora_rt import config, report
from vizora_rt.app import content_errors, events, play_script, plays
from vizora_rt.app.plays import Plays
from vizora_rt.app.state import Device
from vizora_rt.metrics import Metrics
from vizora_rt.net.store import LOST, Store
from vizora_rt.net.timers import Wheel
from vizora_rt.wire.resp import ReplyError, pack

SCHEMA: Final = b"vz:schema"
SCHEMA_VERSION: Final = 1
AGAIN_SECONDS: Final = 1.0
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

log = report.logger("plays")


class Partitions:
    """Registers the scripts, and asks Redis how many partitions it has: the first service to ask decides."""

    def __init__(self, settings: config.Plays, recorder: Plays, store: Store) -> None:
        self._wanted = settings.partitions
        self._recorder = recorder
        self._store = store
        scripts = (
            ("play", play_script.SCRIPT),
            ("content_error", content_errors.SCRIPT),
            ("event", events.SCRIPT),
            ("backlog", BACKLOG),
            ("missing", MISSING),
        )
        for name, source in scripts:
            store.script(name, source)
        store.on_up.append(self._ask)

    def _ask(self) -> None:
        self._store.submit("other", pack("HSETNX", SCHEMA, "version", SCHEMA_VERSION))
        self._store.submit("other", pack("HSETNX", SCHEMA, "partitions", self._wanted))
        self._store.submit("other", pack("HGET", SCHEMA, "partitions"), self._on_partitions)

    def _on_partitions(self, reply: object) -> None:
        if isinstance(reply, bytes):
            fixed = int(reply)
            if fixed not in (self._recorder.partitions, self._wanted):
                log.warning("plays.partitions was fixed before", fixed=fixed, configured=self._wanted)
            self._recorder.partitions = fixed
        elif reply is not LOST:
            # It is up and refuses: full, say. Plays wait meanwhile.
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._ask)


class Backlog:
    """The gauge of each group's lag, over all partitions. An entry of the timer wheel; one worker of a node has it."""

    __slots__ = ("_metrics", "_plays", "_store")

    def __init__(self, metrics: Metrics, recorder: Plays, store: Store, wheel: Wheel) -> None:
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

    def __init__(self, recorder: Plays, store: Store, wheel: Wheel) -> None:
        self._plays = recorder
        self._store = store
        self._new: dict[Device, None] = {}
        wheel.add(self, MISSING_SECONDS)

    def expect(self, device: Device) -> None:
        """The device has connected here."""
        self._new[device] = None

    def on_timer(self, now: float) -> float | None:
        partitions = self._plays.partitions
        if not partitions or not self._store.partly_up:
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


async def plays_of(store: Store, device_id: str, partitions: int) -> dict[str, Any] | None:
    """What GET /devices/{id}/plays answers; None when Redis cannot be asked."""
    if not partitions:
        return None
    reply = await store.request("other", pack("HGETALL", plays.seen_key(device_id.encode(), partitions)))
    if isinstance(reply, ReplyError) or not isinstance(reply, list):
        return None
    seen = dict(zip(reply[::2], reply[1::2], strict=True))
    return {"deviceId": device_id, **plays.describe(seen, time.time_ns() // 1_000_000)}
