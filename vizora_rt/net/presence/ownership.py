"""Who owns a device: told by doorbells, looked up with each renewal, confirmed after Redis was away.

The owner key is `<epoch> <node> <worker> <connected us>`; whoever holds the highest epoch owns the device. Every key of
a device carries one hash tag, so each script of presence touches one slot of a cluster.
"""

import asyncio
import re
import time
from collections.abc import Callable
from itertools import islice
from math import inf

from vizora_rt.app.state import Device, State
from vizora_rt.config import Config
from vizora_rt.errors import REVOKED, SUPERSEDED
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.wire import resp
from vizora_rt.wire.resp import ReplyError

CONFIRMS_A_TURN = 500
AGAIN = 1.0
"""Seconds until what could not be settled is asked again: Redis full or demoted, a doorbell that rang too early."""
CONFIRM_PAUSE = 0.05
"""500 in 50 ms asks for 20,000 devices within 2 s: a device let in unchecked is checked within 5 s."""

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


class Ownership:
    """Which devices are this worker's."""

    def __init__(
        self,
        config: Config,
        node: str,
        worker: int,
        state: State,
        store: RedisClient,
        ring: Callable[[str, int, dict[str, object]], None],
    ) -> None:
        self._node = node
        self._worker = worker
        self._state = state
        self._store = store
        self._send_to_worker = ring
        self._ttl = lifetime(config)
        self._unowned: dict[Device, None] = {}
        self._confirming = False
        self._asked: set[Device] = set()
        self._early: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self.on_renewed: Callable[[Device, bool, str | None, bool], None] = lambda *_: None
        """Told when the owner key was renewed: whether anything waits, the playlist's version, is the device revoked.
        """
        self.on_return: Callable[[Device, int], None] = lambda *_: None
        """Told when a device is back that was offline since then."""
        self.trusted_until = inf
        """Until when (time of the loop) what this worker owned is its own. Others take a silent worker for dead."""
        self.on_fence: Callable[[], None] = lambda: None
        store.script("renew", RENEW)
        store.script("confirm", CONFIRM)
        store.on_up.append(self._on_up)
        store.on_down.append(self._on_down)

    def supersede(self, device: Device, owner: bytes) -> None:
        """Tell the worker of an owner key that the device is ours now."""
        parts = owner.decode().split(" ")
        if len(parts) == 4 and (parts[1], parts[2]) != (self._node, str(self._worker)):
            self._send_to_worker(parts[1], int(parts[2]), {"superseded": device.id, "epoch": device.epoch})

    def superseded(self, device_id: str, epoch: int) -> None:
        """A doorbell: another worker owns the device since `epoch`.

        It may ring before Redis has told us, on another connection, that the device was ours: then it is listened to
        once more. Who is not confirmed yet is not judged by it: its own connection may be the newer one.
        """
        device = self._state.devices.get(device_id)
        if device is None or not device.owned:
            if not self._early:
                self._loop.call_later(AGAIN, self._handle_again)
            self._early[device_id] = max(epoch, self._early.get(device_id, 0))
        elif device.epoch < epoch:
            self._lose(device)

    def _handle_again(self) -> None:
        early, self._early = self._early, {}
        for device_id, epoch in early.items():
            device = self._state.devices.get(device_id)
            if device is not None and device.owned and device.epoch < epoch:
                self._lose(device)

    def _lose(self, device: Device) -> None:
        self._state.lose(device)
        if device.peer is not None:
            device.peer.close(SUPERSEDED)

    def renew(self, device: Device, now: int, again: bool = False) -> None:
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
                self.confirm_later(device)
            elif int(owner.partition(b" ")[0]) > epoch:
                if again:
                    self._lose(device)
                else:
                    self._loop.call_later(AGAIN, self.renew, device, now, True)
            else:
                self.on_renewed(device, *parse_waiting(commands, playlist), revoked == 1)

        device_id = device.id.encode()
        keys = tuple(device_key(device_id, name) for name in (b"owner", b"ledger", b"playlist", b"revoked"))
        self._store.eval("renew", keys, (self._ttl,), on_owner)

    # After Redis was away

    def fence(self) -> None:
        """This worker was silent for so long that others may have its devices: it asks for each before it writes."""
        self.on_fence()
        for device in self._state.devices.values():
            device.owned = False
        self._on_up()

    def _on_down(self) -> None:
        """Redis is away, or the shard of some devices."""
        for device in self._state.devices.values():
            if device.owned and not self._takes(device):
                device.owned = False

    def _on_up(self) -> None:
        for device in self._state.devices.values():
            if not device.owned:
                self._unowned[device] = None
        self._confirm_some()

    def _takes(self, device: Device) -> bool:
        return self._store.is_available(device_key(device.id.encode(), b"owner"))

    def confirm_later(self, device: Device) -> None:
        """Ask again soon: Redis is away, or up and refusing (full, demoted)."""
        self._unowned[device] = None
        if not self._confirming and self._store.available:
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
                self.confirm_later(device)
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
                    self.confirm_later(device)
            elif reply == 1 and peer is not None and device.peer is peer:
                peer.close(REVOKED)

        def on_confirm(reply: object) -> None:
            self._asked.discard(device)
            if device.connected != connected:
                self.confirm_later(device)  # it has come again meanwhile
                return
            if not isinstance(reply, list) or not checked:
                self.confirm_later(device)
            elif reply[0] == 1:
                device.epoch, device.owned = reply[1], True
                device.owner_checked = 0  # with its state it is asked what waits: bells were lost with the connection
                self.supersede(device, reply[2])
                self._returned(device, *parse_status(reply[3]), unchecked)
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
                self.confirm_later(device)  # the token's key is on a shard that is away: the others go on
                return True
        keys = (device_key(device_id, b"owner"), device_key(device_id, b"revoked"), device_key(device_id, b"status"))
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


def lifetime(config: Config) -> int:
    """Seconds that the keys of a connected device live after their last renewal."""
    return max(60, 4 * config.player.heartbeat_interval // 1000)


def parse_status(value: bytes) -> tuple[str, int]:
    """Status and since of a status key, or nothing."""
    found = _STATUS.match(value)
    return (found[1].decode(), int(found[2])) if found is not None else ("", 0)


def parse_waiting(commands: int, playlist: list[bytes | None]) -> tuple[bool, str | None]:
    """Whether anything waits in the ledger, and the version of the stored playlist."""
    waits, version = playlist
    return commands > 0 or waits == b"1", version.decode() if version is not None else None


def device_key(device_id: bytes, name: bytes) -> bytes:
    return b"vz:{d:%b}:%b" % (device_id, name)


def parse_owner(owner: bytes | None) -> tuple[str, int] | None:
    """Node and worker in an owner key."""
    parts = owner.decode().split(" ") if owner else []
    return (parts[1], int(parts[2])) if len(parts) == 4 else None
