"""The ledger in Redis: its scripts and their keys. What waits for a device, the states of a command, and events.

`vz:{d:<device>}:ledger` is a list of lines, oldest first; `:playlist` is a hash with the current playlist and whether
it still waits: `waiting` is 1, or 0 when it was acked, or `sent` when it waits for the next connection, since nobody
acks it. Nothing is taken off before it is acked or expired. The record of a command, `vz:{c:<commandId>}`, has
a field `d:<device>` with its state there; states only go forward, whatever worker writes them late.

Over 300 lines because half of it is its Lua scripts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from vizora_rt.app import events
from vizora_rt.app.commands import KEPT_AFTER, MAX_WAITING, PLAYLIST, QueuedCommand, key, parse_line
from vizora_rt.net.presence.ownership import parse_owner
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.wire.resp import ReplyError

Fields = Sequence[tuple[str, str]]
"""Names and values in the record of a command."""

NEXT = """
local function following(now)
  local expired, head = {}, false
  while true do
    local line = redis.call('LINDEX', KEYS[1], 0)
    if not line then break end
    if tonumber(string.match(line, '^%S+ (%d+)')) > now then head = line break end
    redis.call('LPOP', KEYS[1])
    expired[#expired + 1] = string.match(line, '^%S+ %S+ %S+ %S+ %S+ %S+')
  end
  local playlist = redis.call('HMGET', KEYS[2], 'version', 'waiting')
  if playlist[2] == '1' then
    head = false
    playlist = redis.call('HMGET', KEYS[2], 'version', 'waiting', 'id', 'created', 'asker', 'body')
  end
  return expired, playlist, head
end
"""

PEEK = (
    """
-- KEYS ledger playlist; ARGV now -> {expired lines, playlist, next line}
"""
    + NEXT
    + """
return {following(tonumber(ARGV[1]))}
"""
)

ACK = (
    """
-- KEYS ledger playlist; ARGV now type id waiting: take off what was acked -> as LOOK, and whether it was there
"""
    + NEXT
    + """
local taken = 1
if ARGV[2] == 'playlist' then
  if redis.call('HGET', KEYS[2], 'id') == ARGV[3] then redis.call('HSET', KEYS[2], 'waiting', ARGV[4]) end
else
  local line = redis.call('LINDEX', KEYS[1], 0)
  if line and string.match(line, '^%S+') == ARGV[3] then redis.call('LPOP', KEYS[1]) else taken = 0 end
end
local expired, playlist, head = following(tonumber(ARGV[1]))
return {expired, playlist, head, taken}
"""
)

OWNER = """
local function owner(key, status)
  local found = redis.call('MGET', key, status)
  local here = found[2] and string.match(found[2], '^{"status":"(%a+)"')
  return (here == 'online' or here == 'stale') and found[1]
end
"""

ENQUEUE = (
    """
-- KEYS ledger owner status; ARGV line id expires most now known keep
-- -> {1 queued, 0 there already, -1 full; owner or nil; expired lines}
"""
    + OWNER
    + """
local waiting, expired = redis.call('RPUSH', KEYS[1], ARGV[1]), {}
if waiting > tonumber(ARGV[4]) then
  local kept = {}
  for _, line in ipairs(redis.call('LRANGE', KEYS[1], 0, -2)) do
    if tonumber(string.match(line, '^%S+ (%d+)')) > tonumber(ARGV[5]) then
      kept[#kept + 1] = line
    else
      expired[#expired + 1] = string.match(line, '^%S+ %S+ %S+ %S+ %S+ %S+')
    end
  end
  if #expired == 0 then
    redis.call('RPOP', KEYS[1])
    return {-1, owner(KEYS[2], KEYS[3]), expired}
  end
  kept[#kept + 1] = ARGV[1]
  redis.call('DEL', KEYS[1])
  waiting = redis.call('RPUSH', KEYS[1], unpack(kept))
end
if ARGV[6] == '1' and waiting > 1 then
  for _, line in ipairs(redis.call('LRANGE', KEYS[1], 0, -2)) do
    if string.match(line, '^(%S+)') == ARGV[2] then
      redis.call('RPOP', KEYS[1])
      return {0, owner(KEYS[2], KEYS[3]), expired}
    end
  end
end
local left = -1
if waiting > 1 then
  local time = redis.call('TIME')
  left = redis.call('PTTL', KEYS[1]) + time[1] * 1000 + math.floor(time[2] / 1000) + 1
end
if left < tonumber(ARGV[7]) then redis.call('PEXPIREAT', KEYS[1], ARGV[7]) end
return {1, owner(KEYS[2], KEYS[3]), expired}
"""
)

REPLACE = (
    """
-- KEYS playlist owner status; ARGV id version source created asker body -> {1, owner or nil, {}}
"""
    + OWNER
    + """
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'version', ARGV[2], 'source', ARGV[3], 'created', ARGV[4],
  'asker', ARGV[5], 'body', ARGV[6], 'waiting', 1)
return {1, owner(KEYS[2], KEYS[3]), {}}
"""
)

CURRENT = """
-- KEYS playlist -> {version, source, body}
return redis.call('HMGET', KEYS[1], 'version', 'source', 'body')
"""

STATES = """
-- KEYS command; ARGV expiry, then field value ...: without an expiry nothing is made anew
if ARGV[1] == '0' and redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local rank = {queued = 1, sent = 2}
local function place(value) return rank[string.match(value, '^%a+') or ''] or 3 end
local names, new = {}, {}
for i = 2, #ARGV, 2 do names[#names + 1] = ARGV[i] end
local old = redis.call('HMGET', KEYS[1], unpack(names))
for i, name in ipairs(names) do
  local value = ARGV[2 * i + 1]
  if not old[i] or place(old[i]) < place(value) then
    new[#new + 1] = name
    new[#new + 1] = value
  end
end
if #new > 0 then redis.call('HSET', KEYS[1], unpack(new)) end
if ARGV[1] ~= '0' then redis.call('PEXPIREAT', KEYS[1], ARGV[1]) end
return 1
"""

APPEND_EVENTS = """
-- KEYS stream; ARGV room, names and values of an entry, then of the next one
for i = 2, #ARGV, 10 do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, i, i + 9)) end
"""

SCREENSHOT = """
-- KEYS screenshot; ARGV device type width height at ttl image -> 1 when this device was asked for it
if redis.call('HGET', KEYS[1], 'device') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'type', ARGV[2], 'width', ARGV[3], 'height', ARGV[4], 'at', ARGV[5], 'image', ARGV[7])
redis.call('EXPIRE', KEYS[1], ARGV[6])
return 1
"""

IDEMPOTENCY = """
-- KEYS idempotency; ARGV request seconds -> {request, its answer or nil} of the one before, else {}: this is the first
local found = redis.call('HMGET', KEYS[1], 'request', 'answer')
if found[1] then return found end
redis.call('HSET', KEYS[1], 'request', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return {}
"""

SCRIPTS: Final = {
    "look": PEEK,
    "settle": ACK,
    "enqueue": ENQUEUE,
    "replace": REPLACE,
    "current": CURRENT,
    "states": STATES,
    "happened": APPEND_EVENTS,
    "screenshot": SCREENSHOT,
    "idempotency": IDEMPOTENCY,
}

STATES_A_WRITE: Final = 500
"""Devices in one script of a command's states: some 30 KB, half a millisecond of Redis' time."""
EVENTS_A_WRITE: Final = 100
"""Entries in one script, for the same reason."""


@dataclass(frozen=True, slots=True)
class QueueHead:
    """What a look found: entries that had expired, what is next, and the version of the current playlist. `taken`:
    whether a command that was to be taken off was still there."""

    expired: list[QueuedCommand]
    next: QueuedCommand | None
    version: str | None
    taken: bool = True


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """Where an entry was put: `code` is 1, 0 when it stood there already, -1 when the ledger was full. `owner` is the
    node and worker that have the device's connection, or None; `expired` had to make room."""

    code: int
    owner: tuple[str, int] | None
    expired: list[QueuedCommand]


class CommandQueue:
    """The way to all of it. Calls return False when the store does not take them, and no callback follows then."""

    def __init__(self, store: RedisClient, max_events: int) -> None:
        self._store = store
        self._max_events = max_events
        for name, source in SCRIPTS.items():
            store.script(name, source)

    def peek(self, device_id: str, now: int, done: Callable[[QueueHead | None], None]) -> bool:
        """What is next for a device. `done` gets None when the store did not answer."""
        keys = (key(device_id, "ledger"), key(device_id, "playlist"))
        return self._store.eval("look", keys, (now,), lambda reply: done(_queue_head(reply)))

    def ack(
        self,
        device_id: str,
        entry: QueuedCommand,
        now: int,
        done: Callable[[QueueHead | None], None],
        acked: bool = True,
    ) -> bool:
        """Take off what the device acked, and look. Not `acked`: it was only sent, and a playlist is due again."""
        keys = (key(device_id, "ledger"), key(device_id, "playlist"))
        arguments = (now, entry.type, entry.id, 0 if acked else "sent")
        return self._store.eval("settle", keys, arguments, lambda reply: done(_queue_head(reply)))

    def enqueue(
        self,
        device_id: str,
        entry: QueuedCommand,
        line: bytes,
        known: bool,
        done: Callable[[EnqueueResult | None], None],
    ) -> bool:
        """Put a command behind the others. `known`: its id is the caller's, and may stand there already."""
        keys = (key(device_id, "ledger"), key(device_id, "owner"), key(device_id, "status"))
        keep = entry.expires + KEPT_AFTER
        arguments = (line, entry.id, entry.expires, MAX_WAITING, entry.created, int(known), keep)
        return self._store.eval("enqueue", keys, arguments, lambda reply: done(_enqueue_result(reply)))

    def replace(
        self,
        device_id: str,
        entry: QueuedCommand,
        version: str,
        source: str,
        done: Callable[[EnqueueResult | None], None],
    ) -> bool:
        """Make a playlist the current one."""
        keys = (key(device_id, "playlist"), key(device_id, "owner"), key(device_id, "status"))
        arguments = (entry.id, version, source, entry.created, entry.reply_to, entry.body)
        return self._store.eval("replace", keys, arguments, lambda reply: done(_enqueue_result(reply)))

    def states(
        self, command_id: str, fields: Fields, expiry: int = 0, done: Callable[[Fields, bool], None] = lambda *_: None
    ) -> None:
        """Write fields of a command's record; with `expiry` (ms since the epoch) the record is made. `done` is called
        for each part of them, perhaps at once, with whether it is written."""
        for start in range(0, len(fields), STATES_A_WRITE):
            part = fields[start : start + STATES_A_WRITE]
            flat = [text for field in part for text in field]
            told = partial(_written, done, part)
            if not self._store.eval("states", (command_key(command_id),), (expiry, *flat), told):
                done(part, False)

    def append_events(self, entries: Sequence[tuple[bytes | str | int, ...]]) -> None:
        """Tell backends, in the stream of events; each entry is made by `app.events.entry`."""
        for start in range(0, len(entries), EVENTS_A_WRITE):
            flat = [part for each in entries[start : start + EVENTS_A_WRITE] for part in each]
            self._store.eval("happened", (events.STREAM,), (self._max_events, *flat))


def command_key(command_id: str) -> str:
    return f"vz:{{c:{command_id}}}"


def _written(done: Callable[[Fields, bool], None], part: Fields, reply: object) -> None:
    done(part, not isinstance(reply, ReplyError))


def _queue_head(reply: object) -> QueueHead | None:
    if not isinstance(reply, list):
        return None
    expired, playlist, line, *taken = reply
    version = playlist[0].decode() if playlist[0] is not None else None
    entry = parse_line(line) if line else None
    if len(playlist) > 2:
        _, _, entry_id, created, reply_to, body = playlist
        entry = QueuedCommand(entry_id.decode(), PLAYLIST, 0, int(created), reply_to.decode(), body)
    return QueueHead([parse_line(each) for each in expired], entry, version, taken != [0])


def _enqueue_result(reply: object) -> EnqueueResult | None:
    if not isinstance(reply, list):
        return None
    code, owner, expired = reply
    return EnqueueResult(code, parse_owner(owner), [parse_line(each) for each in expired])
