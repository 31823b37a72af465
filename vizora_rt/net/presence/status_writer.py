"""What Redis knows of devices: the status keys, a tick's worth of writes at a time, and the lists that a sweep walks.

Of all that a device says in a while the last is written: as many writes as devices, however often they speak.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from vizora_rt.app.state import Device, State
from vizora_rt.config import Config
from vizora_rt.net.presence.ownership import Ownership, device_key, lifetime
from vizora_rt.net.redis.client import CONNECTION_LOST, RedisClient
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

OFFLINE_TTL = 24 * 3600
LISTED_EVERY_MS = 60_000
WRITE_BUCKETS = 8
"""A status is written when it is 8 ticks old, each a tenth of `write_within_ms`: the writes of a burst are spread."""

WRITES_A_TURN = 250

MOST_DELISTING = 10_000
"""Devices that moved while a shard was away. One beyond is listed by both organisations until it is erased."""

ORGANIZATIONS = b"vz:orgs"
"""Organisations that ever had a device: where a sweep finds all devices."""


class StatusWriter:
    """One worker's writer of them."""

    def __init__(
        self, config: Config, node: str, worker: int, state: State, store: RedisClient, ownership: Ownership
    ) -> None:
        self._node = node
        self._worker = worker
        self._state = state
        self._store = store
        self._ownership = ownership
        interval = config.player.heartbeat_interval
        self._check_every_ms = interval * 9 // 10
        self._ttl = lifetime(config)
        self._tick = config.presence.write_within_ms / 10_000
        self._write_buckets: deque[list[Device]] = deque()
        self._announcements: list[Device] = []
        self._armed = False
        self._places: dict[str, bytes] = {}
        self._registered: set[str] = set()
        self._delisting: dict[tuple[str, str], None] = {}
        """Devices to be taken off lists whose shard is away."""
        self._loop = asyncio.get_running_loop()
        self.on_change: Callable[[Device], None] = lambda _: None
        """Told when the status of a device is another, and Redis has it."""
        self.on_turned_down: Callable[[], None] = lambda: None
        """Told when Redis answered a device's state with an error. The device's next heartbeat brings it again."""
        store.on_up.append(self._on_up)

    def on_dirty(self) -> None:
        """Something is to be written."""
        if not self._armed and self._store.available:
            self._armed = True
            self._loop.call_later(self._tick, self._on_tick)

    def on_arrival(self, device: Device) -> None:
        """A claim has written a status that is another. Told at the next tick: its two commands are no part of the
        write that the handshake waits for."""
        self._announcements.append(device)
        self.on_dirty()

    def _on_tick(self) -> None:
        if not self._store.available:
            self._armed = False
            return
        if self._loop.time() > self._ownership.trusted_until:
            self._armed = False
            self._ownership.fence()
            self._on_up()
            return
        self._announce()
        self._write_buckets.append(self._state.dirty)
        self._state.dirty = []
        if len(self._write_buckets) >= WRITE_BUCKETS:
            oldest = self._write_buckets[0]
            if len(oldest) > WRITES_A_TURN:
                due, self._write_buckets[0] = oldest[:WRITES_A_TURN], oldest[WRITES_A_TURN:]
            else:
                due = self._write_buckets.popleft()
            self._write(due)
        if any(self._write_buckets) or self._state.dirty or self._announcements:
            self._loop.call_later(0 if len(self._write_buckets) >= WRITE_BUCKETS else self._tick, self._on_tick)
        else:
            self._write_buckets.clear()
            self._armed = False

    def _announce(self) -> None:
        """Of devices that connected; one whose status is another by now is told of when that is written."""
        for device in self._announcements[:WRITES_A_TURN]:
            if not device.owned:
                self._state.changed[device] = None  # once it is confirmed
            elif device not in self._state.changed:
                self.on_change(device)
        del self._announcements[:WRITES_A_TURN]

    def _write(self, due: list[Device]) -> None:
        now = time.time_ns() // 1_000_000
        submit, changed = self._store.submit, self._state.changed
        turned_down, renew = self._see_whether_taken, self._ownership.renew
        for device in due:
            device.dirty = False
            if not device.owned or device.status == "offline":
                continue
            key = device_key(device.id.encode(), b"status")
            value = self.describe(device)
            on_reply = partial(self._on_written, device) if device in changed else turned_down
            if not submit("set", resp.pack_set(key, value, self._ttl), on_reply):
                self._state.touch(device)
                continue
            # Not a matter of time alone: a clock that was set back would keep the owner from being renewed.
            if not 0 <= now - device.owner_checked < self._check_every_ms:
                renew(device, now)
            if not 0 <= now - device.listed < LISTED_EVERY_MS:
                device.listed = now
                self.index(device.organization_id, device.id, now)

    def _see_whether_taken(self, reply: object) -> None:
        # What was lost with the connection is written when Redis is back.
        if reply.__class__ is ReplyError and reply is not CONNECTION_LOST:
            self.on_turned_down()

    def _on_written(self, device: Device, reply: object) -> None:
        """A status that is another is in Redis: who hears of it may look, whichever shard the doorbell is on."""
        self._see_whether_taken(reply)
        if isinstance(reply, ReplyError):
            self._state.touch(device)
        elif device in self._state.changed and not device.dirty:
            del self._state.changed[device]
            self.on_change(device)

    def _on_up(self) -> None:
        """Nothing that was buffered is written before the store has confirmed who owns it."""
        self._registered.clear()
        delisting, self._delisting = self._delisting, {}
        for organization_id, device_id in delisting:
            self.unindex(organization_id, device_id)
        for devices in (*self._write_buckets, self._state.dirty):
            for device in devices:
                device.dirty = device.owned
            devices[:] = [device for device in devices if device.owned]

    def index(self, organization_id: str, device_id: str, now: int) -> None:
        """The device was seen now."""
        if organization_id not in self._registered:
            self._registered.add(organization_id)
            self._store.submit("sadd", resp.pack(b"SADD", ORGANIZATIONS, organization_id), None)
        if self._delisting:
            self._delisting.pop((organization_id, device_id), None)
        key = f"vz:{{o:{organization_id}}}:devices"
        self._store.submit("zadd", resp.pack(b"ZADD", key, now, device_id), None)

    def unindex(self, organization_id: str, device_id: str) -> None:
        """Take back what was listed with a claim that is refused, or what is another organisation's now.

        While the shard of the list is away that is kept for later: nobody else would do it.
        """

        def on_reply(reply: object) -> None:
            if isinstance(reply, ReplyError) and len(self._delisting) < MOST_DELISTING:
                self._delisting[organization_id, device_id] = None

        command = resp.pack(b"ZREM", f"vz:{{o:{organization_id}}}:devices", device_id)
        if not self._store.submit("other", command, on_reply):
            on_reply(CONNECTION_LOST)

    def describe(self, device: Device) -> bytes:
        """The value of the status key: who has the device, then what it last said of itself, then since when."""
        beat = device.heartbeat
        return b'{"status":"%b","reason":"%b",%b%b"since":%d,"epoch":%d}' % (
            device.status.encode(),
            device.reason.encode(),
            self.place(device.organization_id),
            (b'"lastHeartbeat":%d,' % device.last_heartbeat if device.last_heartbeat else b"")
            + (_members(messages.json_struct(beat)) if beat is not None else b""),
            device.since,
            device.epoch,
        )

    def place(self, organization_id: str) -> bytes:
        """Members of the status key: whose the device is and where."""
        place = self._places.get(organization_id)
        if place is None:
            members = {"organizationId": organization_id, "node": self._node, "worker": self._worker}
            place = self._places[organization_id] = _members(messages.dumps(members))
        return place


def _members(json: bytes) -> bytes:
    """The members of a JSON object, to be followed by another."""
    return json[1:-1] + b"," if len(json) > 2 else b""
