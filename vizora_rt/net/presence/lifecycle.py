"""A device comes, falls silent, goes: what its connection says of it.

Before this stands the claim (`claims`), under it what Redis is told (`statuses`) and who may tell it (`ownership`).
"""

import asyncio
import time
from collections.abc import Callable

from vizora_rt.app.state import Device, State
from vizora_rt.config import Config
from vizora_rt.errors import SUPERSEDED
from vizora_rt.net.presence.claim import Grant, OwnershipStore
from vizora_rt.net.presence.ownership import AGAIN, Ownership, device_key, parse_status
from vizora_rt.net.presence.status_writer import OFFLINE_TTL, StatusWriter
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import logs
from vizora_rt.wire import messages
from vizora_rt.wire.resp import ReplyError

STALE_INTERVALS = 3
CLOCK_STEP_MS = 1000
"""The wall clock was set when it and the loop's are so much further apart than at the last look: no drift does that."""

OFFLINE = """
-- KEYS owner status; ARGV epoch status ttl -> 1 when written
local owner = redis.call('GET', KEYS[1])
if owner and string.match(owner, '^(%d+)') ~= ARGV[1] then return 0 end
-- Swept while this worker was thought dead: it is told already.
local old = redis.call('GET', KEYS[2])
if old and string.find(old, '^{"status":"offline"') then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
if owner then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return 1
"""

log = logs.logger("presence")


class _Entry:
    """Of the timer wheel, about a device as long as no newer connection of it has come."""

    __slots__ = ("connected", "device", "presence")

    def __init__(self, presence: "Presence", device: Device) -> None:
        self.presence = presence
        self.device = device
        self.connected = device.connected


class OfflineTimer(_Entry):
    """A device without a connection: offline when it is not back in time."""

    __slots__ = ()

    def on_timer(self, now: float) -> float | None:
        device = self.device
        if device.peer is not None or device.connected != self.connected:
            return None
        return None if self.presence.offline(device) else AGAIN


class StaleTimer(_Entry):
    """A connected device that may say nothing: stale after some intervals."""

    __slots__ = ()

    def on_timer(self, now: float) -> float | None:
        device = self.device
        if device.peer is None or device.connected != self.connected:
            return None
        return self.presence.silent(device)


class Presence:
    """One worker's devices, as they come and go."""

    def __init__(
        self,
        config: Config,
        node: str,
        worker: int,
        state: State,
        store: RedisClient,
        wheel: Wheel,
        ring: Callable[[str, int, dict[str, object]], None],
    ) -> None:
        self._state = state
        self._store = store
        self._wheel = wheel
        self.ownership = Ownership(config, node, worker, state, store, ring)
        self.status_writer = StatusWriter(config, node, worker, state, store, self.ownership)
        self.ownership_store = OwnershipStore(config, node, worker, state, store, self.status_writer)
        self._interval_ms = config.player.heartbeat_interval
        self._absent_after = config.presence.offline_after_seconds
        self._loop = asyncio.get_running_loop()
        self._offset = time.time_ns() / 1e6 - self._loop.time() * 1000
        self._stepped = 0
        self.on_moved: Callable[[Device, str], None] = lambda *_: None
        """Told when a device is no longer of this organisation, but of another."""
        store.script("offline", OFFLINE)

    def connected(self, device: Device, grant: Grant) -> None:
        """The device is connected here: tell its last owner, list it, or have it checked later."""
        self._wheel.add(StaleTimer(self, device), STALE_INTERVALS * self._interval_ms / 1000)
        if not device.owned:
            self.ownership.confirm_later(device)
            return
        self.ownership.supersede(device, grant.owner)
        device.last_heartbeat = max(device.last_heartbeat, grant.last_heartbeat)
        device.listed = grant.connected // 1000
        before, since = parse_status(grant.before)
        if grant.before and b'"organizationId":%b,' % messages.dumps(device.organization_id) not in grant.before:
            self._moved(device, grant)
        device.status, device.reason = self._state.expected(device.organization_id)
        if device.status != grant.status:
            # What is known of its organisation came with the claim.
            self._state.change(device, device.status, device.reason, device.listed)
        elif before != device.status:
            self.status_writer.on_arrival(device)
        if before == "offline":
            self.ownership.on_return(device, since)

    def _moved(self, device: Device, grant: Grant) -> None:
        """The device came with another organisation's token than the last time.

        What is stored for it stays: who pushed it named a device and no organisation, and may have put it there for the
        new one, ahead of the move. If it was not, somebody has to know.
        """
        try:
            found = messages.loads(grant.before)
        except messages.JSONError:
            return
        left = found.get("organizationId") if isinstance(found, dict) else None
        if isinstance(left, str) and left not in ("", device.organization_id):
            self.status_writer.unindex(left, device.id)
            self.on_moved(device, left)
            if grant.version is not None or grant.waiting:
                log.warning(
                    "device moved with what is stored for it",
                    device_id=device.id,
                    organization_id=device.organization_id,
                    left=left,
                    version=grant.version,
                    waiting=grant.waiting,
                )

    def silent(self, device: Device) -> float:
        """The time of a connected device's watch: stale when it is silent too long. Seconds until the next look."""
        now = time.time_ns() // 1_000_000
        patience = STALE_INTERVALS * self._interval_ms
        offset = now - self._loop.time() * 1000
        if abs(offset - self._offset) > CLOCK_STEP_MS:
            self._stepped = now
        self._offset = offset
        # A time of before the clock was set back, of the connect or of a heartbeat, does not say how long ago that was:
        # without another one the wait begins anew.
        heard = max(at if at <= now else 0 for at in (device.last_heartbeat, device.connected // 1000))
        silence = now - max(heard, self._stepped)
        if silence < patience:
            return (patience - silence) / 1000
        held = device.peer is not None and device.peer.held  # its heartbeats wait behind what it sent before them
        if device.status == "online" and not held:
            self._state.change(device, "stale", "no_heartbeat", now)
        else:
            self._state.touch(device)  # its keys must not end before it does
        return self._interval_ms / 1000

    def disconnected(self, device: Device) -> None:
        """Its connection is gone and no newer one took its place: offline, if that lasts."""
        if self._state.devices.get(device.id) is not device:
            self._state.report(device)
            return
        if device.owned:
            device.listed = time.time_ns() // 1_000_000
            self.status_writer.index(device.organization_id, device.id, device.listed)
        self._wheel.add(OfflineTimer(self, device), self._absent_after)

    def offline(self, device: Device) -> bool:
        """Write that the device is gone, unless a newer owner has it. False: Redis is away, ask again."""
        if not device.owned:
            return False
        if device.status != "offline":
            self._state.offline(device, time.time_ns() // 1_000_000)
        connected = device.connected

        def on_offline(reply: object) -> None:
            if device.connected != connected:
                return  # it is back
            if isinstance(reply, ReplyError):
                self._wheel.add(OfflineTimer(self, device), AGAIN)
                return
            if reply == 0:
                device.reason = SUPERSEDED.name
                self._state.report(device)
            elif device.status == "offline":
                self.status_writer.on_change(device)
            self._state.forget(device)

        keys = (device_key(device.id.encode(), b"owner"), device_key(device.id.encode(), b"status"))
        return self._store.eval(
            "offline", keys, (device.epoch, self.status_writer.describe(device), OFFLINE_TTL), on_offline
        )
