"""The end of commands whose screens do not look: the holder of the sweeper's lease ends what is due, wherever it waits.

`vz:due` has each command by when it ends, `<id> <device>`, or `<id>` of one that is for many: then its record names
them. Whoever takes an expired line off a ledger counts it, be it the courier of a device that is connected or this: so
each is counted once.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from vizora_rt.app.commands import QueuedCommand, key, parse_line
from vizora_rt.net.commands.queue import command_key
from vizora_rt.net.presence.record import organization_of
from vizora_rt.net.redis.client import CONNECTION_LOST, RedisClient
from vizora_rt.wire import resp

DUE: Final = b"vz:due"

LATE_MS: Final = 5000
"""The clocks of nodes differ, by far less: a command is ended late rather than early."""
AGAIN_MS: Final = 30_000
"""Until a shard that is away is asked again; what is on the others does not wait for it."""

PAGE: Final = 500
PAUSE: Final = 0.02
"""Seconds between two pages: 25,000 devices a second, as in a sweep."""
A_PASS: Final = 20_000
"""Devices until the sweeper has its turn again: less than a second, the rest comes with the next renewal."""

EXPIRE: Final = """
-- KEYS ledger status; ARGV now -> {lines that had expired, without bodies; the status if there were any}
local expired, late, at = {}, {}, 0
while true do
  local lines = redis.call('LRANGE', KEYS[1], at, at + 99)
  for _, line in ipairs(lines) do
    if tonumber(string.match(line, '^%S+ (%d+)')) <= tonumber(ARGV[1]) then late[#late + 1] = line end
  end
  at = at + #lines
  if #lines < 100 then break end
end
for _, line in ipairs(late) do
  -- From the head, where most of them are.
  redis.call('LREM', KEYS[1], 1, line)
  expired[#expired + 1] = string.match(line, '^%S+ %S+ %S+ %S+ %S+ %S+')
end
return {expired, #expired > 0 and redis.call('GET', KEYS[2])}
"""


class Expiry:
    """One worker's part in it. `expired` is told of each, with the organisation that the device was last seen with."""

    def __init__(self, store: RedisClient, expired: Callable[[str, str, QueuedCommand], None]) -> None:
        self.expired = expired
        self._store = store
        store.script("expire", EXPIRE)

    def due(self, entry: QueuedCommand, devices: Sequence[str]) -> None:
        """Note when a command of these devices ends."""
        if devices:
            member = entry.id if len(devices) > 1 else f"{entry.id} {devices[0]}"
            self._store.submit("zadd", resp.pack("ZADD", DUE, entry.expires, member))

    async def sweep(self) -> None:
        """End what is due, or as much of it as a pass may. What Redis does not answer to stays for a later one."""
        left = A_PASS
        while left > 0:
            now = time.time_ns() // 1_000_000 - LATE_MS
            members = await self._ask("ZRANGEBYSCORE", DUE, "-inf", now, "LIMIT", 0, PAGE)
            if not members:
                return
            found = [tuple(member.decode().split(" ", 1)) for member in members]
            single = [pair for pair in found if len(pair) == 2]
            await self._settle([f"{entry} {device}" for entry, device in single], await self._of(single, now), now)
            left -= len(single)
            for (entry_id,) in (pair for pair in found if len(pair) == 1):
                if left <= 0:
                    return
                reached, devices = await self._of_record(entry_id, now)
                await self._settle([entry_id], [reached], now)
                left -= devices
            await asyncio.sleep(PAUSE)

    async def _of(self, pairs: Sequence[tuple[str, ...]], now: int) -> list[bool]:
        """Of each pair, whether its device's ledger could be looked at. A device has one look, however much is due."""
        devices = list(dict.fromkeys(device for _, device in pairs))
        reached = dict(zip(devices, await asyncio.gather(*(self._expire(each, now) for each in devices)), strict=True))
        return [reached[device] for _, device in pairs]

    async def _of_record(self, entry_id: str, now: int) -> tuple[bool, int]:
        """Whether all devices of a command's record could be looked at that may still have it; and how many."""
        whole, count, cursor = True, 0, b"0"
        while True:
            reply = await self._ask("HSCAN", command_key(entry_id), cursor, "MATCH", "d:*", "COUNT", PAGE)
            if reply is None:
                return False, count
            cursor, row = reply
            states = zip(row[::2], row[1::2], strict=True)
            waiting = [name[2:].decode() for name, state in states if state.startswith((b"queued", b"sent"))]
            whole &= all(await asyncio.gather(*(self._expire(device, now) for device in waiting)))
            count += len(waiting)
            if cursor == b"0":
                return whole, count
            await asyncio.sleep(PAUSE)

    def _expire(self, device_id: str, now: int) -> asyncio.Future[bool]:
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def on_reply(reply: object) -> None:
            if isinstance(reply, list):
                # Here, where no end of the sweep can come between: they are off the ledger.
                lines, status = reply
                for line in lines:
                    self.expired(device_id, organization_of(status), parse_line(line))
            if not answered.done():
                answered.set_result(isinstance(reply, list))

        if not self._store.eval("expire", (key(device_id, "ledger"), key(device_id, "status")), (now,), on_reply):
            on_reply(CONNECTION_LOST)
        return answered

    async def _settle(self, members: Sequence[str], over: Sequence[bool], now: int) -> None:
        """Forget what is over, and put off what is not."""
        gone = [member for member, done in zip(members, over, strict=True) if done]
        kept = [member for member, done in zip(members, over, strict=True) if not done]
        if gone:
            await self._ask("ZREM", DUE, *gone)
        if kept:
            later = now + LATE_MS + AGAIN_MS
            await self._ask("ZADD", DUE, "XX", *(part for member in kept for part in (later, member)))

    async def _ask(self, *command: bytes | str | int) -> Any:
        """The reply, or None."""
        reply = await self._store.request("other", resp.pack(*command))
        return reply if not isinstance(reply, resp.ReplyError) else None
