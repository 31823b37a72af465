"""Who decides when a worker dies with its devices: the holder of a lease, one at a time among all nodes.

Each worker renews its member of `vz:nodes`, and each looks whether the others do. A member that was not renewed for
20 s, by the clock of the loop that watches it, is dead; wall clocks are set, and a worker whose renewal is an hour old
after that is none the worse for it. Devices of the dead that nobody else has are marked offline, each by a
script that compares the owner it read, so that a device which comes back at that moment stays online. A worker that was
only stopped or cut off finds its lease on its devices over, and has them confirmed before it writes (`ownership`).

A worker that stops says so before its clients are told: its member gives way to one that says that it leaves, and is
renewed until the end. Other nodes do not count on it any more: of nodes that are stopped together, none sends its
clients to another. Those of its devices that did not come back in the same time are marked offline as well, without an
alarm.

A worker that is replaced has an heir of the same name, which renews for it: the heir looks after what it left behind.
While nobody is dead, the holder of the lease ends commands that are due (`expiry`).

Over 300 lines because a fifth of it is its Lua scripts.
"""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf, isfinite
from typing import Any, Final, Protocol

from vizora_rt.app.state import State
from vizora_rt.config import Config
from vizora_rt.errors import RESTARTING
from vizora_rt.net.presence.ownership import Ownership
from vizora_rt.net.presence.publisher import StatusPublisher
from vizora_rt.net.presence.status_writer import LISTED_EVERY_MS, OFFLINE_TTL, ORGANIZATIONS
from vizora_rt.net.redis.client import CONNECTION_LOST, RedisClient
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.quiet import Quiet
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

NODES: Final = b"vz:nodes"
LEASE: Final = b"vz:lease:sweeper"
REASON: Final = "worker_lost"

RENEWALS: Final = 4
"""Renewals in the time after which a worker counts as dead: three may be late."""
LOOKS: Final = RENEWALS - 1
LOOK_SECONDS: Final = 0.25
"""For the answer to who else lives. Clients wait for their goodbye meanwhile, and would wait 3 s for what it spares."""
TOGETHER_SECONDS: Final = 1.0
"""In which nodes that are stopped together all say so. Clients stay connected meanwhile; without it they would be sent
to nodes that stop as well, meet nobody, and back off."""
LEASE_SHARE: Final = 0.75
"""The lease of a dead sweeper is over before anybody is due to be declared dead."""

PAGE: Final = 500
PAUSE: Final = 0.02
"""Seconds between two pages: 25,000 devices a second, at a twentieth of what Redis can do."""

LEFT: Final = "left "
"""How the member of a worker that stops or stopped begins. Its name, which holds no space, follows."""

MEMBER: Final = re.compile(rf"({LEFT})?\S+ [0-9]+")
"""The member of a worker: its node and its number."""

LIVE = """
-- KEYS nodes; ARGV member, the one that it replaces: this worker lives, or has left -> {member, renewed, ...} of all
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
"""

REMOVE_MEMBER = """
-- KEYS nodes; ARGV member renewed: forget a worker, unless it lives after all
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
"""

HOLD = """
-- KEYS lease; ARGV who ttl -> 1 when it is theirs
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

SWEEP = """
-- KEYS owner status; ARGV owner, now, ttl, head, rest -> {since, last heartbeat}, or 0: another's, or offline already
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
local old = redis.call('GET', KEYS[2])
local status = string.match(old or '', '^{"status":"(%a+)"')
if old and status ~= 'online' and status ~= 'stale' and status ~= 'suspended' then return 0 end
local since = tonumber(ARGV[2])
if old then since = math.max(since, tonumber(string.match(old, '"since":(%d+),"epoch"') or 0) + 1) end
since = string.format('%.0f', since)
local members = ARGV[5]
if old then
  members = string.match(old, '^{"status":"%a+","reason":"[^"]*",(.*)"since":%d+,"epoch":%d+}$') or members
end
redis.call('SET', KEYS[2], ARGV[4] .. members .. '"since":' .. since .. ',"epoch":0}', 'EX', ARGV[3])
redis.call('DEL', KEYS[1])
return {tonumber(since), tonumber(string.match(members, '"lastHeartbeat":(%d+)') or 0)}
"""
"""The owner is deleted: a worker that had been thought dead finds out with its next renewal, and confirms."""

HEAD: Final = b'{"status":"offline","reason":"%b",'

Lost = Callable[[str, str, str, int], str]
"""Why a device is offline, given its id and the node, worker and time of connection in its owner key; "" when it is not
that the sweep knows of."""

log = logs.logger("sweeper")


class LeaseJob(Protocol):
    """Work of the holder of the lease, done while no worker is lost."""

    async def sweep(self) -> None:
        """Do what is due now."""


class LostError(Exception):
    """Redis went away; the sweep begins anew."""


class Reaper:
    """One worker's part in it. An entry of the timer wheel."""

    def __init__(
        self,
        config: Config,
        node: str,
        worker: int,
        state: State,
        store: RedisClient,
        wheel: Wheel,
        ownership: Ownership,
        publisher: StatusPublisher,
        expiry: LeaseJob,
    ) -> None:
        self._me = f"{node} {worker}"
        self._state = state
        self._store = store
        self._ownership = ownership
        self._publisher = publisher
        self._expiry = expiry
        self._loop = asyncio.get_running_loop()
        self._grace = config.presence.worker_lost_after_seconds
        self._absent_after = config.presence.offline_after_seconds
        self._every = self._grace / RENEWALS
        # What a predecessor still drains is not left behind yet.
        self._inherits_at = self._loop.time() + self._absent_after + config.server.drain_seconds
        self._up_since = inf
        self._quiet = Quiet()
        self._seen: dict[bytes, tuple[bytes, float, int]] = {}
        """Each member's last renewal, since when (time of the loop) it has been the last, and how many looks ago."""
        self._stopped = self._left = False
        self._task: asyncio.Task[None] | None = None
        for name, source in {"live": LIVE, "bury": REMOVE_MEMBER, "lease": HOLD, "sweep": SWEEP}.items():
            store.script(name, source)
        store.on_up.append(self._on_up)
        store.on_down.append(self._on_down)
        ownership.on_fence = self.renew
        ownership.trusted_until = self._loop.time() + self._grace
        wheel.add(self, self._every)

    def renew(self) -> None:
        """Say that this worker lives. Until others may doubt it again, what it owned is its own."""
        until = self._loop.time() + self._grace

        def on_reply(reply: object) -> None:
            if isinstance(reply, list):
                self._ownership.trusted_until = until
                self._look(dict(zip(reply[::2], reply[1::2], strict=True)))

        if not self._store.is_available(NODES):
            self._ownership.trusted_until = until  # nobody can be told; and nobody can ask who is silent
        self._store.eval("live", (NODES,), self._members(), on_reply)

    def _members(self) -> tuple[str, str]:
        """The member of this worker, and the one that it replaces."""
        return (LEFT + self._me, self._me) if self._left else (self._me, LEFT + self._me)

    def leave(self) -> None:
        """Say that this worker stops: before it tells its clients, and once more as the last thing that it does."""
        self._left = True
        self.renew()

    async def remaining(self, seconds: float) -> int:
        """Say that this worker stops. How many workers of other nodes go on, of those that did not say the same within
        `seconds`."""
        self._left = True
        found = await self._others()
        if found and seconds:
            await asyncio.sleep(min(seconds, TOGETHER_SECONDS))
            found = await self._others()
        return found

    async def _others(self) -> int:
        """How many workers of other nodes live. As far as this one knows, when Redis does not answer at once."""
        with suppress(LostError, TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                reply = await self._eval("live", (NODES,), self._members())
            self._look(dict(zip(reply[::2], reply[1::2], strict=True)))
        lately = self._loop.time() - self._grace * LOOKS / RENEWALS
        here = self._me.rpartition(" ")[0]
        found = (member.decode() for member, (_, since, _) in self._seen.items() if since > lately)
        return sum(not member.startswith(LEFT) and member.rpartition(" ")[0] != here for member in found)

    def _look(self, members: dict[bytes, bytes]) -> None:
        """Who has renewed since the last look."""
        now, seen = self._loop.time(), self._seen
        self._seen = {}
        for member, renewed in members.items():
            if not _valid(member, renewed):
                continue
            before, since, looks = seen.get(member, (b"", now, 0))
            self._seen[member] = (renewed, since, looks + 1) if before == renewed else (renewed, now, 0)

    def _dead(self) -> dict[bytes, bytes]:
        """Members that have not renewed for too long, with when they did. After a sleep of its own, in which it cannot
        have looked, a worker looks some more times before it judges: the others may have slept as well."""
        until = self._loop.time() - self._grace
        me = self._me.encode()
        return {
            member: renewed
            for member, (renewed, since, looks) in self._seen.items()
            if since <= until and looks >= LOOKS and member != me
        }

    def stop(self) -> None:
        """Sweep no more; others will. That this worker lives is said as long as it does."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    def on_timer(self, now: float) -> float | None:
        self.renew()
        if self._task is not None or self._stopped:
            return self._every
        if self._store.available and self._loop.time() >= self._inherits_at:
            self._inherits_at = inf
            self._start(self._succeed())
        elif self._loop.time() - self._up_since >= self._grace:
            # Whoever was away with Redis has had the time to say that it lives.
            self._store.eval("lease", (LEASE,), (self._me, int(self._grace * LEASE_SHARE * 1000)), self._on_lease)
        return self._every

    def _on_up(self) -> None:
        self._up_since = self._loop.time()
        self._seen.clear()
        self.renew()

    def _on_down(self) -> None:
        self._up_since = inf

    def _on_lease(self, reply: object) -> None:
        if reply == 1 and self._task is None and not self._stopped:
            dead = self._dead()
            self._start(self._declare_lost(dead) if dead else self._expiry.sweep())

    def _start(self, work: Any) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if isinstance(error, LostError):
            if self._quiet.may_say("given up"):
                left_out = self._quiet.left_out("given up")
                log.warning("sweep given up", reason="redis is away or refuses", left_out=left_out)
        elif isinstance(error, Exception):
            log.exception("sweep failed", error)

    async def _declare_lost(self, dead: dict[bytes, bytes]) -> None:
        """Mark devices of dead workers offline, then forget the workers."""
        left = {member: member.startswith(LEFT.encode()) for member in dead}
        names = {
            tuple(member.decode().removeprefix(LEFT).rsplit(" ", 1)): RESTARTING.name if left[member] else REASON
            for member in dead
        }
        # Keys of a worker that died long ago have ended; its devices were listed until shortly before.
        lately = min(int(float(renewed)) for renewed in dead.values()) - 2 * LISTED_EVERY_MS
        swept = await self._sweep(lambda device_id, node, worker, connected: names.get((node, worker), ""), lately)
        for member, renewed in dead.items():
            await self._eval("bury", (NODES,), (member, renewed))
        if all(left.values()):
            log.info("workers have left", workers=len(dead), devices=swept)
        else:
            log.warning("workers lost", workers=len(dead) - sum(left.values()), devices=swept)

    async def _succeed(self) -> None:
        """Mark offline what a predecessor of the same name had and nobody has now."""
        devices, me = self._state.devices, tuple(self._me.rsplit(" ", 1))
        before = (time.time() - self._absent_after) * 1_000_000

        def left(device_id: str, node: str, worker: str, connected: int) -> str:
            return REASON if (node, worker) == me and connected < before and device_id not in devices else ""

        try:
            swept = await self._sweep(left, None)
        except LostError:
            self._inherits_at = self._loop.time() + self._grace
            raise
        if swept:
            log.warning("devices of the worker before are offline", devices=swept)

    async def _sweep(self, lost: Lost, lately: int | None) -> int:
        """Walk over all devices; how many were marked. Without an owner key a device is lost that was seen since
        `lately`."""
        swept, cursor = 0, b"0"
        while True:
            cursor, organizations = await self._ask("sscan", "SSCAN", ORGANIZATIONS, cursor, "COUNT", PAGE)
            for organization in organizations:
                swept += await self._sweep_organization(organization.decode(), lost, lately)
            if cursor == b"0":
                return swept

    async def _sweep_organization(self, organization_id: str, lost: Lost, lately: int | None) -> int:
        swept, cursor, key = 0, b"0", f"vz:{{o:{organization_id}}}:devices"
        while True:
            cursor, rows = await self._ask("zscan", "ZSCAN", key, cursor, "COUNT", PAGE)
            seen = {row.decode(): int(float(score)) for row, score in zip(rows[::2], rows[1::2], strict=True)}
            owners = await asyncio.gather(*(self._ask("get", "GET", _key(device, "owner")) for device in seen))
            found: dict[str, tuple[bytes, str]] = {}
            for device_id, owner in zip(seen, owners, strict=True):
                parts = owner.decode().split(" ") if owner else []
                if len(parts) == 4 and (reason := lost(device_id, parts[1], parts[2], int(parts[3]))):
                    found[device_id] = (owner, reason)
                elif not parts and lately is not None and seen[device_id] >= lately:
                    found[device_id] = (b"", REASON)
            marks = (self._mark(organization_id, device, *why, seen[device]) for device, why in found.items())
            swept += sum(await asyncio.gather(*marks))
            if cursor == b"0":
                return swept
            await asyncio.sleep(PAUSE)

    async def _mark(self, organization_id: str, device_id: str, owner: bytes, reason: str, seen: int) -> bool:
        now = time.time_ns() // 1_000_000
        keys = (_key(device_id, "owner"), _key(device_id, "status"))
        members = messages.dumps({"organizationId": organization_id})[1:-1] + b","
        reply = await self._eval("sweep", keys, (owner, now, OFFLINE_TTL, HEAD % reason.encode(), members))
        if not isinstance(reply, list):
            return False
        since, heartbeat = reply
        self._publisher.publish(device_id, organization_id, "offline", since, max(seen, heartbeat), reason)
        return True

    async def _ask(self, operation: str, *command: bytes | str | int) -> Any:
        reply = await self._store.request(operation, resp.pack(*command))
        if isinstance(reply, ReplyError):
            raise LostError
        return reply

    async def _eval(self, name: str, keys: tuple[bytes | str, ...], arguments: tuple[bytes | str | int, ...]) -> Any:
        future: asyncio.Future[object] = self._loop.create_future()

        def on_reply(reply: object) -> None:
            if not future.done():
                future.set_result(reply)

        if not self._store.eval(name, keys, arguments, on_reply):
            on_reply(CONNECTION_LOST)
        reply = await future
        if isinstance(reply, ReplyError):
            raise LostError
        return reply


def _valid(member: bytes, renewed: bytes) -> bool:
    """Whether a member of the set is one that workers write. Others, written by hand, are left where they are."""
    try:
        return MEMBER.fullmatch(member.decode()) is not None and isfinite(float(renewed))
    except UnicodeDecodeError:
        return False


def _key(device_id: str, name: str) -> str:
    return f"vz:{{d:{device_id}}}:{name}"
