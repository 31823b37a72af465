"""Whether a client may come in, asked of Redis. A device is claimed in the same write."""

import time
from collections.abc import Callable

from vizora_rt.app.auth import Identity
from vizora_rt.app.state import State, Status
from vizora_rt.config import Config
from vizora_rt.errors import AUTH_INVALID, DEVICE_REVOKED, STORE_UNAVAILABLE, Refusal
from vizora_rt.net.presence import user_session
from vizora_rt.net.presence.ownership import OWN, device_key, lifetime, parse_waiting
from vizora_rt.net.presence.status_writer import OFFLINE_TTL, StatusWriter
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.wire import resp
from vizora_rt.wire.resp import ReplyError

ACQUIRE = (
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
if playlist[1] == 'sent' then
  redis.call('HSET', KEYS[5], 'waiting', 1)
  playlist[1] = '1'
end
local last = tonumber(string.match(beat, '%d+') or 0)
return {tonumber(fresh), tonumber(since), last, waiting, playlist, previous or '', old}
"""
)

RELEASE = """
-- KEYS owner status; ARGV epoch, what both were, ttl: give back what a revoked token took -> 1 when given back
local owner = redis.call('GET', KEYS[1])
if not owner or string.match(owner, '^(%d+)') ~= ARGV[1] then return 0 end
for i = 1, 2 do
  if ARGV[i + 1] == '' then redis.call('DEL', KEYS[i]) else redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[4]) end
end
return 1
"""


class Grant:
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


class OwnershipStore:
    """One worker's questions at the door."""

    def __init__(
        self, config: Config, node: str, worker: int, state: State, store: RedisClient, status_writer: StatusWriter
    ) -> None:
        self._node = node
        self._worker = worker
        self._state = state
        self._store = store
        self._status_writer = status_writer
        self._fail_open = config.auth.fail_open_devices
        self._fail_open_users = config.auth.fail_open_dashboards
        self._ttl = lifetime(config)
        self.on_acquiring: Callable[[str], None] = lambda _: None
        """Told before a device of this organisation is claimed."""
        store.script("claim", ACQUIRE)
        store.script("release", RELEASE)

    def acquire(self, identity: Identity, done: Callable[[Grant | Refusal], None]) -> None:
        """Ask whether the device is revoked and take it, in one write. `done` is called once, perhaps at once."""
        connected = time.time_ns() // 1000
        now = connected // 1000
        revoked_jti: bool | None = False
        claimed: object = None
        device_id = identity.id.encode()
        self.on_acquiring(identity.organization_id)
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
                self._status_writer.unindex(identity.organization_id, identity.id)
                done(DEVICE_REVOKED)
            else:
                epoch, since, last_heartbeat, commands, playlist, owner, status = reply
                verdict: Grant | Refusal = DEVICE_REVOKED
                if revoked_jti is None:
                    verdict = self._unchecked(connected, now)  # the token's key is on a shard that is away
                elif not revoked_jti:
                    waits = parse_waiting(commands, playlist)
                    verdict = Grant(epoch, since, owner, connected, *waits, last_heartbeat, written, status)
                if isinstance(verdict, Grant):
                    done(verdict)
                    return
                ttl = OFFLINE_TTL if status.startswith(b'{"status":"offline"') else self._ttl
                self._store.eval("release", keys[:2], (epoch, owner, status, ttl))
                if not status:
                    self._status_writer.unindex(identity.organization_id, identity.id)
                done(verdict)

        place = self._status_writer.place(identity.organization_id)
        head = b'{"status":"%b","reason":"%b",%b' % (written.encode(), reason.encode(), place)
        keys = tuple(device_key(device_id, name) for name in (b"owner", b"status", b"revoked", b"ledger", b"playlist"))
        arguments = (self._node, self._worker, connected, self._ttl, head, now)
        if identity.jti:
            jti_open = self._store.submit("exists", resp.pack("EXISTS", f"revoked_token:{identity.jti}"), on_jti)
            revoked_jti = False if jti_open else None
        if self._store.eval("claim", keys, arguments, on_claim):
            self._status_writer.index(identity.organization_id, identity.id, now)
        else:
            done(self._unchecked(connected, now))

    def check_user(self, identity: Identity, done: Callable[[Grant | Refusal], None]) -> None:
        """Ask whether a dashboard's session still holds, in one write."""
        now = time.time_ns() // 1000

        def on_look(why: str | None) -> None:
            if why is None:
                done(Grant(0, 0, b"", now) if self._fail_open_users else STORE_UNAVAILABLE)
            else:
                done(AUTH_INVALID if why else Grant(0, 0, b"", now))

        user_session.check_session(self._store, identity, on_look)

    def _unchecked(self, connected: int, now: int) -> Grant | Refusal:
        return Grant(0, now, b"", connected) if self._fail_open else STORE_UNAVAILABLE
