"""Who owns a device and what Redis knows of it: claims, coalesced status writes, offline, confirmation after outages.

Every key of a device carries one hash tag, so each script below touches one slot of a cluster. The owner key is
`<epoch> <node> <worker> <connected us>`; whoever holds the highest epoch owns the device.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from math import inf

from vizora_rt.app.auth import Identity
from vizora_rt.app.state import Device, State, Status
from vizora_rt.config import Config
from vizora_rt.errors import AUTH_INVALID, DEVICE_REVOKED, REVOKED, STORE_UNAVAILABLE, SUPERSEDED, Refusal
from vizora_rt.net import sessions
from vizora_rt.net.store import LOST, Store
from vizora_rt.net.timers import Wheel
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

OFFLINE_TTL = 24 * 3600
LISTED_EVERY_MS = 60_000
AGES = 8
"""A status is written when it is 8 ticks old, each a tenth of `write_within_ms`: the writes of a burst are spread."""

WRITES_A_TURN = 250
CONFIRMS_A_TURN = 500
AGAIN = 1.0
"""Seconds until what could not be settled is asked again: Redis full or demoted, a doorbell that rang too early."""
CONFIRM_PAUSE = 0.05
"""500 in 50 ms asks for 20,000 devices within 2 s: a device let in unchecked is checked within 5 s."""

ORGANIZATIONS = b"vz:orgs"
"""Organisations that ever had a device: where a sweep finds all devices."""

STALE_INTERVALS = 3
CLOCK_STEP_MS = 1000
"""The wall clock was set when it and the loop's are so much further apart than at the last look: no drift does that."""
_STATUS = re.compile(rb'{"status":"(\w+)".*"since":(\d+),"epoch":\d+}$', re.DOTALL)

OWN = """
local stored, previous = 0, redis.call('GET', KEYS[1])
if previous then stored = tonumber(string.match(previous, '^(%d+)') or 0) end
local time = redis.call('TIME')
local fresh = string.format('%.0f', math.max(stored + 1, time[1] * 1000000 + time[2]))
local function own(node, worker, connected, ttl)
  redis.call('SET', KEYS[1], fresh .. ' ' .. node .. ' ' .. worker .. ' ' .. connected, 'EX', ttl)
end
"""

CLAIM = (
    """
-- KEYS owner status revoked ledger playlist; ARGV node worker connected ttl head now
-- -> {epoch, since, last heartbeat, commands that wait, {does the playlist wait, its version}, owner and status before}
--    or {0}: revoked
if redis.call('EXISTS', KEYS[3]) == 1 then return {0} end
"""
    + OWN
    + """
own(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
local since, old = ARGV[6], redis.call('GET', KEYS[2]) or ''
local beat = string.match(old, '"lastHeartbeat":%d+,') or ''
local was = tonumber(string.match(old, '"since":(%d+),"epoch"') or 0)
if string.match(old, '^{"status":"%a+"') == string.match(ARGV[5], '^{"status":"%a+"') then
  since = was
else
  since = math.max(tonumber(since), was + 1)
end
since = string.format('%.0f', since)
redis.call('SET', KEYS[2], ARGV[5] .. beat .. '"since":' .. since .. ',"epoch":' .. fresh .. '}', 'EX', ARGV[4])
local waiting, playlist = redis.call('LLEN', KEYS[4]), redis.call('HMGET', KEYS[5], 'waiting', 'version')
local last = tonumber(string.match(beat, '%d+') or 0)
return {tonumber(fresh), tonumber(since), last, waiting, playlist, previous or '', old}
"""
)

RENEW = """
-- KEYS owner ledger playlist revoked; ARGV ttl -> {owner or nil, commands, {playlist waits, version}, revoked}
local owner = redis.call('GET', KEYS[1])
if owner then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return {owner, redis.call('LLEN', KEYS[2]), redis.call('HMGET', KEYS[3], 'waiting', 'version'),
  redis.call('EXISTS', KEYS[4])}
"""

CONFIRM = (
    """
-- KEYS owner revoked status; ARGV node worker connected ttl epoch
-- -> {1, epoch, owner and status before}, {0}: another's, {-1}: revoked
if redis.call('EXISTS', KEYS[2]) == 1 then return {-1} end
"""
    + OWN
    + """
local mine = tonumber(ARGV[5])
if mine > 0 and stored > mine then return {0} end
if mine == 0 and previous and tonumber(string.match(previous, '(%d+)$') or 0) > tonumber(ARGV[3]) then return {0} end
own(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
return {1, tonumber(fresh), previous or '', redis.call('GET', KEYS[3]) or ''}
"""
)

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

RELEASE = """
-- KEYS owner status; ARGV epoch, what both were, ttl: give back what a revoked token took -> 1 when given back
local owner = redis.call('GET', KEYS[1])
if not owner or string.match(owner, '^(%d+)') ~= ARGV[1] then return 0 end
for i = 1, 2 do
  if ARGV[i + 1] == '' then redis.call('DEL', KEYS[i]) else redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[4]) end
end
return 1
"""


class Claim:
    """What a claim gave: `epoch` 0 when the store could not be asked; `owner` is the owner key before, or empty.

    `waiting` says whether anything waits in the ledger, `version` is that of the stored playlist. `status` is what was
    written, `before` the status key as it was.
    """

    __slots__ = ("before", "connected", "epoch", "last_heartbeat", "owner", "since", "status", "version", "waiting")

    def __init__(
        self,
        epoch: int,
        since: int,
        owner: bytes,
        connected: int,
        waiting: bool = False,
        version: str | None = None,
        last_heartbeat: int = 0,
        status: Status = "online",
        before: bytes = b"",
    ) -> None:
        self.epoch = epoch
        self.since = since
        self.owner = owner
        self.connected = connected
        self.waiting = waiting
        self.version = version
        self.last_heartbeat = last_heartbeat
        self.status = status
        self.before = before


class Absence:
    """A device without a connection: offline when it is not back in time. An entry of the timer wheel."""

    __slots__ = ("connected", "device", "presence")

    def __init__(self, presence: "Presence", device: Device) -> None:
        self.presence = presence
        self.device = device
        self.connected = device.connected

    def on_timer(self, now: float) -> float | None:
        device = self.device
        if device.peer is not None or device.connected != self.connected:
            return None
        return None if self.presence.offline(device) else 1.0


class Silence:
    """A connected device that may say nothing: stale after some intervals. An entry of the timer wheel."""

    __slots__ = ("connected", "device", "presence")

    def __init__(self, presence: "Presence", device: Device) -> None:
        self.presence = presence
        self.device = device
        self.connected = device.connected

    def on_timer(self, now: float) -> float | None:
        device = self.device
        if device.peer is None or device.connected != self.connected:
            return None
        return self.presence.silent(device)


class Presence:
    """One worker's writer of presence."""

    def __init__(
        self,
        config: Config,
        node: str,
        worker: int,
        state: State,
        store: Store,
        wheel: Wheel,
        ring: Callable[[str, int, dict[str, object]], None],
    ) -> None:
        self._node = node
        self._worker = worker
        self._state = state
        self._store = store
        self._wheel = wheel
        self._ring = ring
        self._fail_open = config.auth.fail_open_devices
        self._fail_open_users = config.auth.fail_open_dashboards
        interval = config.player.heartbeat_interval
        self._interval_ms = interval
        self._check_every_ms = interval * 9 // 10
        self._ttl = max(60, 4 * interval // 1000)
        self._absent_after = config.presence.offline_after_seconds
        self._tick = config.presence.write_within_ms / 10_000
        self._ages: deque[list[Device]] = deque()
        self._news: list[Device] = []
        self._armed = False
        self._unowned: dict[Device, None] = {}
        self._confirming = False
        self._asked: set[Device] = set()
        self._places: dict[str, bytes] = {}
        self._registered: set[str] = set()
        self._early: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._offset = time.time_ns() / 1e6 - self._loop.time() * 1000
        self._stepped = 0
        self.on_renewed: Callable[[Device, bool, str | None, bool], None] = lambda *_: None
        """Told when the owner key was renewed: whether anything waits, the playlist's version, is the device revoked.
        """
        self.on_claim: Callable[[str], None] = lambda _: None
        """Told before a device of this organisation is claimed."""
        self.on_change: Callable[[Device], None] = lambda _: None
        """Told when the status of a device is another, and Redis has it."""
        self.on_return: Callable[[Device, int], None] = lambda *_: None
        """Told when a device is back that was offline since then."""
        self.on_moved: Callable[[Device, str], None] = lambda *_: None
        """Told when a device is no longer of this organisation, but of another."""
        self.on_turned_down: Callable[[], None] = lambda: None
        """Told when Redis answered a device's state with an error. The device's next heartbeat brings it again."""
        self.trusted_until = inf
        """Until when (time of the loop) what this worker owned is its own. Others take a silent worker for dead."""
        self.on_distrust: Callable[[], None] = lambda: None
        scripts = {"claim": CLAIM, "confirm": CONFIRM, "offline": OFFLINE, "release": RELEASE, "renew": RENEW}
        for name, source in scripts.items():
            store.script(name, source)
        store.on_up.append(self._on_up)
        store.on_down.append(self._on_down)

    # Connecting

    def claim(self, identity: Identity, done: Callable[[Claim | Refusal], None]) -> None:
        """Ask whether the device is revoked and take it, in one write. `done` is called once, perhaps at once."""
        connected = time.time_ns() // 1000
        now = connected // 1000
        revoked_jti: bool | None = False
        claimed: object = None
        device_id = identity.id.encode()
        self.on_claim(identity.organization_id)
        written, reason = self._state.expected(identity.organization_id)
        jti_open = False

        def on_jti(reply: object) -> None:
            nonlocal revoked_jti, jti_open
            revoked_jti, jti_open = None if isinstance(reply, ReplyError) else reply == 1, False
            if claimed is not None:
                on_claim(claimed)

        def on_claim(reply: object) -> None:
            nonlocal claimed
            if jti_open:
                claimed = reply  # another shard has the token's key, and is slower
                return
            if not isinstance(reply, list):
                done(self._unchecked(connected, now))
            elif not reply[0]:
                self._unlist(identity.organization_id, identity.id)
                done(DEVICE_REVOKED)
            else:
                epoch, since, last_heartbeat, commands, playlist, owner, status = reply
                verdict: Claim | Refusal = DEVICE_REVOKED
                if revoked_jti is None:
                    verdict = self._unchecked(connected, now)  # the token's key is on a shard that is away
                elif not revoked_jti:
                    waits = _waits(commands, playlist)
                    verdict = Claim(epoch, since, owner, connected, *waits, last_heartbeat, written, status)
                if isinstance(verdict, Claim):
                    done(verdict)
                    return
                ttl = OFFLINE_TTL if status.startswith(b'{"status":"offline"') else self._ttl
                self._store.eval("release", keys[:2], (epoch, owner, status, ttl))
                if not status:
                    self._unlist(identity.organization_id, identity.id)
                done(verdict)

        place = self._place(identity.organization_id)
        head = b'{"status":"%b","reason":"%b",%b' % (written.encode(), reason.encode(), place)
        keys = tuple(_key(device_id, name) for name in (b"owner", b"status", b"revoked", b"ledger", b"playlist"))
        arguments = (self._node, self._worker, connected, self._ttl, head, now)
        if identity.jti:
            jti_open = self._store.submit("exists", resp.pack("EXISTS", f"revoked_token:{identity.jti}"), on_jti)
            revoked_jti = False if jti_open else None
        if self._store.eval("claim", keys, arguments, on_claim):
            self._list(identity.organization_id, identity.id, now)
        else:
            done(self._unchecked(connected, now))

    def check_user(self, identity: Identity, done: Callable[[Claim | Refusal], None]) -> None:
        """Ask whether a dashboard's session still holds, in one write."""
        now = time.time_ns() // 1000

        def on_look(why: str | None) -> None:
            if why is None:
                done(Claim(0, 0, b"", now) if self._fail_open_users else STORE_UNAVAILABLE)
            else:
                done(AUTH_INVALID if why else Claim(0, 0, b"", now))

        sessions.look(self._store, identity, on_look)

    def connected(self, device: Device, claim: Claim) -> None:
        """The device is connected here: tell its last owner, list it, or have it checked later."""
        self._wheel.add(Silence(self, device), STALE_INTERVALS * self._interval_ms / 1000)
        if not device.owned:
            self._confirm_later(device)
            return
        self._supersede(device, claim.owner)
        device.last_heartbeat = max(device.last_heartbeat, claim.last_heartbeat)
        device.listed = claim.connected // 1000
        before, since = _status(claim.before)
        if claim.before and b'"organizationId":%b,' % messages.dumps(device.organization_id) not in claim.before:
            self._moved(device, claim.before)
        device.status, device.reason = self._state.expected(device.organization_id)
        if device.status != claim.status:
            # What is known of its organisation came with the claim.
            self._state.change(device, device.status, device.reason, device.listed)
        elif before != device.status:
            # Told at the next tick: its two commands are no part of the write that the handshake waits for.
            self._news.append(device)
            self.on_dirty()
        if before == "offline":
            self.on_return(device, since)

    def silent(self, device: Device) -> float:
        """The time of a connected device's watch: stale when it is silent too long. Seconds until the next look."""
        now = time.time_ns() // 1_000_000
        patience = STALE_INTERVALS * self._interval_ms
        offset = now - self._loop.time() * 1000
        if abs(offset - self._offset) > CLOCK_STEP_MS:
            self._stepped = now
        self._offset = offset
        heard = max(device.last_heartbeat, device.connected // 1000)
        # A time of before the clock was set does not say how long ago that was: then the wait begins anew.
        silence = now - max(heard if heard <= now else 0, self._stepped)
        if silence < patience:
            return (patience - silence) / 1000
        if device.status == "online":
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
            self._list(device.organization_id, device.id, device.listed)
        self._wheel.add(Absence(self, device), self._absent_after)

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
                self._wheel.add(Absence(self, device), AGAIN)
                return
            if reply == 0:
                device.reason = SUPERSEDED.name
                self._state.report(device)
            elif device.status == "offline":
                self.on_change(device)
            self._state.forget(device)

        keys = (_key(device.id.encode(), b"owner"), _key(device.id.encode(), b"status"))
        return self._store.eval("offline", keys, (device.epoch, self._describe(device), OFFLINE_TTL), on_offline)

    def superseded(self, device_id: str, epoch: int) -> None:
        """A doorbell: another worker owns the device since `epoch`.

        It may ring before Redis has told us, on another connection, that the device was ours: then it is listened to
        once more. Who is not confirmed yet is not judged by it: its own connection may be the newer one.
        """
        device = self._state.devices.get(device_id)
        if device is None or not device.owned:
            if not self._early:
                self._loop.call_later(AGAIN, self._hear_again)
            self._early[device_id] = max(epoch, self._early.get(device_id, 0))
        elif device.epoch < epoch:
            self._lose(device)

    def _hear_again(self) -> None:
        early, self._early = self._early, {}
        for device_id, epoch in early.items():
            device = self._state.devices.get(device_id)
            if device is not None and device.owned and device.epoch < epoch:
                self._lose(device)

    def _unchecked(self, connected: int, now: int) -> Claim | Refusal:
        return Claim(0, now, b"", connected) if self._fail_open else STORE_UNAVAILABLE

    def _supersede(self, device: Device, owner: bytes) -> None:
        parts = owner.decode().split(" ")
        if len(parts) == 4 and (parts[1], parts[2]) != (self._node, str(self._worker)):
            self._ring(parts[1], int(parts[2]), {"superseded": device.id, "epoch": device.epoch})

    def _lose(self, device: Device) -> None:
        self._state.lose(device)
        if device.peer is not None:
            device.peer.close(SUPERSEDED)

    # Status writes: coalesced per device, a tick's worth at a time

    def on_dirty(self) -> None:
        if not self._armed and self._store.partly_up:
            self._armed = True
            self._loop.call_later(self._tick, self._on_tick)

    def _on_tick(self) -> None:
        if not self._store.partly_up:
            self._armed = False
            return
        if self._loop.time() > self.trusted_until:
            self._armed = False
            self.on_distrust()
            for device in self._state.devices.values():
                device.owned = False
            self._on_up()
            return
        self._tell_news()
        self._ages.append(self._state.dirty)
        self._state.dirty = []
        if len(self._ages) >= AGES:
            oldest = self._ages[0]
            if len(oldest) > WRITES_A_TURN:
                due, self._ages[0] = oldest[:WRITES_A_TURN], oldest[WRITES_A_TURN:]
            else:
                due = self._ages.popleft()
            self._write(due)
        if any(self._ages) or self._state.dirty or self._news:
            self._loop.call_later(0 if len(self._ages) >= AGES else self._tick, self._on_tick)
        else:
            self._ages.clear()
            self._armed = False

    def _tell_news(self) -> None:
        """Of devices that connected; one whose status is another by now is told of when that is written."""
        for device in self._news[:WRITES_A_TURN]:
            if not device.owned:
                self._state.changed[device] = None  # once it is confirmed
            elif device not in self._state.changed:
                self.on_change(device)
        del self._news[:WRITES_A_TURN]

    def _write(self, due: list[Device]) -> None:
        now = time.time_ns() // 1_000_000
        submit, changed = self._store.submit, self._state.changed
        turned_down = self._see_whether_taken
        for device in due:
            device.dirty = False
            if not device.owned or device.status == "offline":
                continue
            key = _key(device.id.encode(), b"status")
            value = self._describe(device)
            on_reply = partial(self._on_written, device) if device in changed else turned_down
            if not submit("set", resp.pack_set(key, value, self._ttl), on_reply):
                self._state.touch(device)
                continue
            # Not a matter of time alone: a clock that was set back would keep the owner from being renewed.
            if not 0 <= now - device.owner_checked < self._check_every_ms:
                self._check_owner(device, now)
            if not 0 <= now - device.listed < LISTED_EVERY_MS:
                device.listed = now
                self._list(device.organization_id, device.id, now)

    def _see_whether_taken(self, reply: object) -> None:
        # What was lost with the connection is written when Redis is back.
        if reply.__class__ is ReplyError and reply is not LOST:
            self.on_turned_down()

    def _on_written(self, device: Device, reply: object) -> None:
        """A status that is another is in Redis: who hears of it may look, whichever shard the doorbell is on."""
        self._see_whether_taken(reply)
        if isinstance(reply, ReplyError):
            self._state.touch(device)
        elif device in self._state.changed and not device.dirty:
            del self._state.changed[device]
            self.on_change(device)

    def _check_owner(self, device: Device, now: int, again: bool = False) -> None:
        """Renew the owner key, see whether it is still ours and whether anything waits: a doorbell may be lost.

        Looked at `again` before the device is told not to come back: a revoked token may hold it for a moment.
        """
        device.owner_checked = now
        epoch = device.epoch

        def on_owner(reply: object) -> None:
            if not isinstance(reply, list) or device.epoch != epoch or not device.owned:
                return
            owner, commands, playlist, revoked = reply
            if owner is None:
                device.owned = False
                self._confirm_later(device)
            elif int(owner.partition(b" ")[0]) > epoch:
                if again:
                    self._lose(device)
                else:
                    self._loop.call_later(AGAIN, self._check_owner, device, now, True)
            else:
                self.on_renewed(device, *_waits(commands, playlist), revoked == 1)

        device_id = device.id.encode()
        keys = tuple(_key(device_id, name) for name in (b"owner", b"ledger", b"playlist", b"revoked"))
        self._store.eval("renew", keys, (self._ttl,), on_owner)

    def _list(self, organization_id: str, device_id: str, now: int) -> None:
        if organization_id not in self._registered:
            self._registered.add(organization_id)
            self._store.submit("sadd", resp.pack(b"SADD", ORGANIZATIONS, organization_id), None)
        key = f"vz:{{o:{organization_id}}}:devices"
        self._store.submit("zadd", resp.pack(b"ZADD", key, now, device_id), None)

    def _moved(self, device: Device, before: bytes) -> None:
        """The device came with another organisation's token than the last time."""
        try:
            found = messages.loads(before)
        except messages.JSONError:
            return
        left = found.get("organizationId") if isinstance(found, dict) else None
        if isinstance(left, str) and left not in ("", device.organization_id):
            self._unlist(left, device.id)
            self.on_moved(device, left)

    def _unlist(self, organization_id: str, device_id: str) -> None:
        """Take back what was listed with a claim that is refused, or what is another organisation's now."""
        self._store.submit("other", resp.pack(b"ZREM", f"vz:{{o:{organization_id}}}:devices", device_id))

    def _describe(self, device: Device) -> bytes:
        """The value of the status key: who has the device, then what it last said of itself, then since when."""
        beat = device.heartbeat
        return b'{"status":"%b","reason":"%b",%b%b"since":%d,"epoch":%d}' % (
            device.status.encode(),
            device.reason.encode(),
            self._place(device.organization_id),
            (b'"lastHeartbeat":%d,' % device.last_heartbeat if device.last_heartbeat else b"")
            + (_members(messages.json_struct(beat)) if beat is not None else b""),
            device.since,
            device.epoch,
        )

    def _place(self, organization_id: str) -> bytes:
        place = self._places.get(organization_id)
        if place is None:
            members = {"organizationId": organization_id, "node": self._node, "worker": self._worker}
            place = self._places[organization_id] = _members(messages.dumps(members))
        return place

    # After Redis was away

    def _on_down(self) -> None:
        """Redis is away, or the shard of some devices."""
        for device in self._state.devices.values():
            if device.owned and not self._takes(device):
                device.owned = False

    def _on_up(self) -> None:
        """Nothing that was buffered is written before the store has confirmed who owns it."""
        self._registered.clear()
        for devices in (*self._ages, self._state.dirty):
            devices[:] = [device for device in devices if device.owned]
        for device in self._state.devices.values():
            if not device.owned:
                device.dirty = False
                self._unowned[device] = None
        self._confirm_some()

    def _takes(self, device: Device) -> bool:
        return self._store.takes(_key(device.id.encode(), b"owner"))

    def _confirm_later(self, device: Device) -> None:
        """Ask again soon: Redis is away, or up and refusing (full, demoted)."""
        self._unowned[device] = None
        if not self._confirming and self._store.partly_up:
            self._confirming = True
            self._loop.call_later(AGAIN, self._confirm_some)

    def _confirm_some(self) -> None:
        self._confirming = False
        for device in list(islice(self._unowned, CONFIRMS_A_TURN)):
            del self._unowned[device]
            if self._state.devices.get(device.id) is not device or device.owned or not self._takes(device):
                continue  # when its shard is back, it is asked
            if device in self._asked:
                continue  # asked twice, the second answer would be that somebody has it since: we
            if not self._confirm(device):
                self._confirm_later(device)
                return
        if self._unowned and not self._confirming:
            self._confirming = True
            self._loop.call_later(CONFIRM_PAUSE, self._confirm_some)

    def _confirm(self, device: Device) -> bool:
        peer, connected, unchecked = device.peer, device.connected, not device.epoch
        device_id = device.id.encode()
        checked = True

        def on_jti(reply: object) -> None:
            nonlocal checked
            if isinstance(reply, ReplyError):
                checked = False
                if device.connected == connected and device.owned:
                    device.owned = False
                    self._confirm_later(device)
            elif reply == 1 and peer is not None and device.peer is peer:
                peer.close(REVOKED)

        def on_confirm(reply: object) -> None:
            self._asked.discard(device)
            if device.connected != connected:
                self._confirm_later(device)  # it has come again meanwhile
                return
            if not isinstance(reply, list) or not checked:
                self._confirm_later(device)
            elif reply[0] == 1:
                device.epoch, device.owned = reply[1], True
                self._supersede(device, reply[2])
                self._returned(device, *_status(reply[3]), unchecked)
                self._state.touch(device)
            elif reply[0] == 0:
                self._lose(device)
            else:
                self._state.forget(device)
                if device.peer is not None:
                    device.peer.close(REVOKED)

        if peer is not None and peer.identity.jti:
            token = resp.pack("EXISTS", f"revoked_token:{peer.identity.jti}")
            if not self._store.submit("exists", token, on_jti):
                self._confirm_later(device)  # the token's key is on a shard that is away: the others go on
                return True
        keys = (_key(device_id, b"owner"), _key(device_id, b"revoked"), _key(device_id, b"status"))
        arguments = (self._node, self._worker, connected, self._ttl, device.epoch)
        taken = self._store.eval("confirm", keys, arguments, on_confirm)
        if taken:
            self._asked.add(device)
        return taken

    def _returned(self, device: Device, before: str, since: int, unchecked: bool) -> None:
        """The device is confirmed: what Redis, and with it those who watch, believed of it meanwhile."""
        if device.peer is None:
            return  # it is offline soon, or was said to be already
        if before == device.status and unchecked and device not in self._state.changed:
            device.since = since
        elif unchecked or before == "offline":
            device.since = max(device.since, since)
            self._state.change(device, device.status, device.reason, time.time_ns() // 1_000_000)
        if before == "offline":
            self.on_return(device, since)


def _status(value: bytes) -> tuple[str, int]:
    """Status and since of a status key, or nothing."""
    found = _STATUS.match(value)
    return (found[1].decode(), int(found[2])) if found is not None else ("", 0)


def _waits(commands: int, playlist: list[bytes | None]) -> tuple[bool, str | None]:
    """Whether anything waits in the ledger, and the version of the stored playlist."""
    waits, version = playlist
    return commands > 0 or waits == b"1", version.decode() if version is not None else None


def _members(json: bytes) -> bytes:
    """The members of a JSON object, to be followed by another."""
    return json[1:-1] + b"," if len(json) > 2 else b""


def _key(device_id: bytes, name: bytes) -> bytes:
    return b"vz:{d:%b}:%b" % (device_id, name)
