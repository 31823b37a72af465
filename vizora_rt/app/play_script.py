"""The script that records plays: one message's, atomically, over keys of one partition. And what bounds it.

A device's hash `seen` holds, per boot of the player, which phases of which plays are in, as runs, newest first:
`3:5000` are five thousand plays with both. So a boot takes 40 bytes however many plays it has sent, a hole 10 more.

    seen    b:<boot>  "<last ms> <lost> <newest number> <runs>"; code of a run: 0 a hole, 1 start, 2 end, 3 both
            d:<day>   plays of that UTC day (days since the epoch), by their own time where that can be true
            missing   plays in the holes of all its boots
    legacy  <day>:<bucket>  8 bytes for each play without a number that came that day; a bucket is ten minutes of the
                      player's clock, of which 48 hours have one each
            open      starts that no end has closed: "<content> <ms> <id>" a line, newest first
            today     the day of the last play, to know when a day can be forgotten

Past 300 lines because the script is one.
"""

from typing import Final

MAX_BOOTS: Final = 8
"""A player that starts anew more often than that while it still has plays to send has other troubles."""
KEEP_DAYS: Final = 35
"""A month and some days: what was played in it can still come when it is billed."""
MAX_HOLES: Final = 1000
MAX_UNFINISHED: Final = 100
"""Plays without an end, or ends without a start, that are told apart from finished ones. A batch holds so many plays
with both phases; the oldest beyond count as finished."""
LISTED_HOLES: Final = 100
"""Of which an ack tells. A player that sends these again gets to know of the next ones."""
LEGACY_DAYS: Final = 2
"""A play without a number is known again for 48 hours, and at most a day longer."""
OPEN_MS: Final = 24 * 3_600_000
MAX_OPEN: Final = 32
"""Contents that a player without numbers shows at a time: more than a screen has zones."""
MAX_DIGESTS: Final = 4096
"""Plays without a number that are known again, of ten minutes: seven a second."""

DAY_MS: Final = 86_400_000
ARGUMENTS: Final = 8
"""Of each play, after the message's own."""

_CONSTANTS: Final = {
    "DAY": DAY_MS,
    "MAX_BOOTS": MAX_BOOTS,
    "KEEP_DAYS": KEEP_DAYS,
    "MAX_HOLES": MAX_HOLES,
    "MAX_UNFINISHED": MAX_UNFINISHED,
    "LISTED_HOLES": LISTED_HOLES,
    "LEGACY_DAYS": LEGACY_DAYS,
    "OPEN": OPEN_MS,
    "MAX_OPEN": MAX_OPEN,
    "MAX_DIGESTS": MAX_DIGESTS,
    "ARGUMENTS": ARGUMENTS,
}

_BODY: Final = r"""
-- KEYS seen stream legacy; ARGV now today room device organization boot, then of each play:
-- number phase day at content playlist duration completion. Without a boot the number is what tells the play.
-- -> {1, watermark, accepted, duplicates, plays, missing, holes lost, boots lost, entries dropped, holes} or {0}: full
local now, today, room = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local count = (#ARGV - 6) / ARGUMENTS
local accepted, plays, days, dropped = 0, 0, {}, 0

-- Where the slowest group of readers stands: what is before it is read and acknowledged by all.
local function slowest()
  local least, least_ms, least_n
  for _, reply in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    local group = {}
    for i = 1, #reply, 2 do group[reply[i]] = reply[i + 1] end
    local id = group['last-delivered-id']
    if group.pending > 0 then id = redis.call('XPENDING', KEYS[2], group.name)[2] end
    local ms, n = string.match(id, '(%d+)-(%d+)')
    ms, n = tonumber(ms), tonumber(n)
    if not least or ms < least_ms or (ms == least_ms and n < least_n) then least, least_ms, least_n = id, ms, n end
  end
  return least
end

local length = redis.call('XLEN', KEYS[2])
if count > 0 and length > 0 and length + count > room then
  local group = slowest()
  if group then
    redis.call('XTRIM', KEYS[2], 'MINID', group)
    if redis.call('XLEN', KEYS[2]) + count > room then return {0} end
  else
    -- A hundredth more than need be: trimming a stream costs more than one entry.
    dropped = redis.call('XTRIM', KEYS[2], 'MAXLEN', math.max(0, math.floor(room * 0.99) - count))
  end
end

local function record(i, id, phase, first)
  local at = ARGV[i + 3]
  redis.call('XADD', KEYS[2], '*', 'play_id', ARGV[4] .. ':' .. ARGV[6] .. ':' .. id, 'phase', phase,
    'device_id', ARGV[4], 'organization_id', ARGV[5], 'content_id', ARGV[i + 4], 'playlist_id', ARGV[i + 5],
    'client_time', at, 'server_time', ARGV[1], 'offset_ms', at ~= '' and string.format('%.0f', now - at) or '',
    'duration', ARGV[i + 6], 'completion', ARGV[i + 7])
  accepted = accepted + 1
  if first then
    plays = plays + 1
    days[ARGV[i + 2]] = (days[ARGV[i + 2]] or 0) + 1
  end
end

-- Counts by day, and what is too old to be kept. The key outlives its last boot.
local function finish(renew)
  for day, n in pairs(days) do
    if redis.call('HINCRBY', KEYS[1], 'd:' .. day, n) == n then
      renew = true
      for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
        local old = string.match(field, '^d:(%d+)$')
        if old and tonumber(old) < today - KEEP_DAYS then redis.call('HDEL', KEYS[1], field) end
      end
    end
  end
  if renew then redis.call('EXPIRE', KEYS[1], (KEEP_DAYS + 1) * 86400) end
end

if ARGV[6] == '' then
  local i, at, raw = 7, tonumber(ARGV[10]), ARGV[7]
  local id = string.gsub(raw, '.', function(byte) return string.format('%02x', string.byte(byte)) end)
  local names = {'open', 'today'}
  local bucket = math.floor((at or now) / 600000) % 288
  for back = 0, LEGACY_DAYS do names[#names + 1] = (today - back) .. ':' .. bucket end
  local found = redis.call('HMGET', KEYS[3], unpack(names))
  for n = 3, #names do
    local from = at and found[n] and string.find(found[n], raw, 1, true)
    while from do
      if from % #raw == 1 then return {1, -1, 0, 1, 0, -1, 0, 0, dropped, ''} end
      from = string.find(found[n], raw, from + 1, true)
    end
  end
  if found[2] ~= ARGV[2] then
    for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
      local old = string.match(field, '^(%d+):')
      if old and tonumber(old) < today - LEGACY_DAYS then redis.call('HDEL', KEYS[3], field) end
    end
  end
  local content = string.sub(redis.sha1hex(ARGV[11]), 1, 16)
  local open, started, keep = {}, nil, ARGV[8] == '1' and MAX_OPEN - 1 or MAX_OPEN
  for line, key, ms, start in string.gmatch(found[1] or '', '((%x+) (%d+) (%x+)\n)') do
    if key == content then
      if now - ms < OPEN then started = start end
    elseif #open < keep and now - ms < OPEN then
      open[#open + 1] = line
    end
  end
  if ARGV[8] == '1' then
    table.insert(open, 1, content .. ' ' .. ARGV[1] .. ' ' .. id .. '\n')
    record(i, id, 'start', true)
  else
    record(i, started or id, 'end', not started)
  end
  redis.call('HSET', KEYS[3], 'open', table.concat(open), 'today', ARGV[2],
    names[3], string.sub((found[3] or '') .. raw, -MAX_DIGESTS * #raw))
  redis.call('EXPIRE', KEYS[3], (LEGACY_DAYS + 1) * 86400)
  finish(false)
  return {1, -1, 1, 0, plays, -1, 0, 0, dropped, ''}
end

local field = 'b:' .. ARGV[6]
local found = redis.call('HMGET', KEYS[1], field, 'missing')
local missing = tonumber(found[2] or 0)
local last, lost, top, runs = string.match(found[1] or '0 0 0 ', '^(%d+) (%d+) (%d+) (.*)$')
last, lost, top = tonumber(last), tonumber(lost), tonumber(top)
local boots_lost = 0

local function holes_of(text)
  local sum = 0
  for length in string.gmatch(text, '0:(%d+)') do sum = sum + length end
  return sum
end

-- A boot that is not known: room for it among the others.
if count > 0 and now - last >= KEEP_DAYS * DAY then
  last, lost, top, runs = 0, 0, 0, ''
  local fields, kept, oldest, oldest_at = redis.call('HGETALL', KEYS[1]), 0, nil, nil
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 2) == 'b:' then
      local ms = tonumber(string.match(fields[i + 1], '^%d+'))
      if now - ms >= KEEP_DAYS * DAY then
        redis.call('HDEL', KEYS[1], fields[i])
        missing = missing - holes_of(string.match(fields[i + 1], '[^ ]*$'))
      else
        kept = kept + 1
        if not oldest or ms < oldest_at then oldest, oldest_at = i, ms end
      end
    end
  end
  if kept >= MAX_BOOTS then
    redis.call('HDEL', KEYS[1], fields[oldest])
    missing = missing - holes_of(string.match(fields[oldest + 1], '[^ ]*$'))
    boots_lost = 1
  end
end

local codes, lengths, before = {}, {}, 0
for code, length in string.gmatch(runs, '(%d):(%d+)') do
  codes[#codes + 1], lengths[#lengths + 1] = tonumber(code), tonumber(length)
  if code == '0' then before = before + length end
end

-- Whether the phase of the play is new, and whether it is the play's first.
local function mark(number, phase)
  if number > top then
    if number > top + 1 then
      table.insert(codes, 1, 0)
      table.insert(lengths, 1, number - top - 1)
    end
    top = number
    if codes[1] == phase then
      lengths[1] = lengths[1] + 1
    else
      table.insert(codes, 1, phase)
      table.insert(lengths, 1, 1)
    end
    return true, true
  end
  local at, high = 1, top
  while number <= high - lengths[at] do
    high = high - lengths[at]
    at = at + 1
  end
  local code = codes[at]
  if code == phase or code == 3 then return false, false end
  local newer, whole = high - number, code + phase
  local older = lengths[at] - newer - 1
  if newer == 0 and codes[at - 1] == whole then
    lengths[at - 1] = lengths[at - 1] + 1
    if older > 0 then
      lengths[at] = older
    else
      table.remove(codes, at)
      table.remove(lengths, at)
      if codes[at] == whole then
        lengths[at - 1] = lengths[at - 1] + lengths[at]
        table.remove(codes, at)
        table.remove(lengths, at)
      end
    end
  elseif older == 0 and codes[at + 1] == whole then
    lengths[at + 1] = lengths[at + 1] + 1
    if newer > 0 then
      lengths[at] = newer
    else
      table.remove(codes, at)
      table.remove(lengths, at)
    end
  else
    codes[at], lengths[at] = whole, 1
    if older > 0 then
      table.insert(codes, at + 1, code)
      table.insert(lengths, at + 1, older)
    end
    if newer > 0 then
      table.insert(codes, at, code)
      table.insert(lengths, at, newer)
    end
  end
  return true, code == 0
end

for i = 7, #ARGV, ARGUMENTS do
  local phase = tonumber(ARGV[i + 1])
  local new, first = mark(tonumber(ARGV[i]), phase)
  if new then record(i, ARGV[i], phase == 1 and 'start' or 'end', first) end
end

-- The bounds: the oldest holes are given up, the oldest unfinished plays count as finished.
local holes, holes_lost = 0, 0
for i = 1, #codes do
  if codes[i] == 0 then holes = holes + 1 end
end
local surplus = #codes - 2 * (math.min(holes, MAX_HOLES) + MAX_UNFINISHED) - 1
if holes > MAX_HOLES or surplus > 0 then
  local old_codes, old_lengths, n = codes, lengths, #codes
  for i = n, 1, -1 do
    local code = codes[i]
    if code == 0 and holes > MAX_HOLES then
      codes[i], lost, holes, holes_lost = 3, lost + lengths[i], holes - 1, holes_lost + 1
    elseif (code == 1 or code == 2) and surplus > 0 then
      codes[i], surplus = 3, surplus - 1
    end
  end
  codes, lengths = {}, {}
  for i = 1, n do
    if codes[#codes] == old_codes[i] then
      lengths[#lengths] = lengths[#lengths] + old_lengths[i]
    else
      codes[#codes + 1], lengths[#lengths + 1] = old_codes[i], old_lengths[i]
    end
  end
end

local parts, listed, after, low, watermark = {}, {}, 0, 0, nil
for i = #codes, 1, -1 do
  local high = low + lengths[i]
  if codes[i] == 0 then
    watermark = watermark or low
    after = after + lengths[i]
    if #listed < LISTED_HOLES then listed[#listed + 1] = string.format('[%.0f,%.0f]', low + 1, high) end
  end
  low = high
  parts[i] = string.format('%d:%.0f', codes[i], lengths[i])
end
if count > 0 then
  missing = missing - before + after
  redis.call('HSET', KEYS[1], field, string.format('%.0f %.0f %.0f ', math.max(now, last), lost, top) ..
    table.concat(parts, ','), 'missing', string.format('%.0f', missing))
  finish(math.floor(last / DAY) < today)
end
return {1, watermark or top, accepted, count - accepted, plays, missing, holes_lost, boots_lost, dropped,
  table.concat(listed, ',')}
"""

SCRIPT: Final = "".join(f"local {name} = {value}\n" for name, value in _CONSTANTS.items()) + _BODY
