"""The script that records plays: one message's, atomically, over keys of one partition. And what bounds it.

A device's hash `seen` holds, per boot of the player, which phases of which plays are in, as runs in order of their
numbers: five thousand plays with both are one. So a boot takes 40 bytes however many plays it has sent, a hole 16 more.
A run is eight bytes, so a play's is found by halving: a play costs the same however many holes there are.

    seen    r:<boot>  "<last ms> <lost> <newest number> <missing> <holes> " and the runs: of each the last number in
                      seven bytes, big-endian, and a code: 0 a hole, 1 start, 2 end, 3 both
            b:<boot>  the same as the release before keeps it, "<last ms> <lost> <newest number> <code>:<length>,..."
                      with the newest run first. It is read where a worker of that release has written it, and joined
                      with r:<boot>. A boot of few runs is written here too, so that such a worker knows its plays in a
                      rolling restart and after a way back. A 0 before the ms says that r:<boot> has all of it
            d:<day>   plays of that UTC day (days since the epoch), by their own time where that can be true
            missing   plays in the holes of all its boots
            held      what the device has in the stream: "<ms of the newest>:<entries>" of parts of it, oldest first
    legacy  <day>:<bucket>  8 bytes for each play without a number that came that day; a bucket is ten minutes of the
                      player's clock, of which 48 hours have one each
            open      starts that no end has closed: "<content> <ms> <id>" a line, newest first
            ended     ends without a start: the same with the player's ms after the id
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
TEXT_RUNS: Final = 256
"""Runs of a boot that are also written as text. A player that loses nothing has at most 201, normally three."""
LISTED_HOLES: Final = 100
"""Of which an ack tells. A player that sends these again gets to know of the next ones."""
PLAYS_A_CALL: Final = 25
"""Of a batch, in one run of the script. Redis does nothing else meanwhile: 0.2 to 0.6 ms."""
LEGACY_DAYS: Final = 2
"""A play without a number is known again for 48 hours, and at most a day longer."""
OPEN_MS: Final = 24 * 3_600_000
MAX_OPEN: Final = 32
"""Contents that a player without numbers shows at a time: more than a screen has zones."""
MAX_DIGESTS: Final = 4096
"""Plays without a number that are known again, of ten minutes: seven a second."""
BUCKETS: Final = 288
BUCKET_MS: Final = 600_000

PROTECTED_MS: Final = 12 * 3_600_000
"""A device that has its share does not push out what others sent so lately: longer than a night without a reader."""
RETRY_MS: Final = 60_000
"""After which a device that has its share comes again while a group of readers lags behind."""
LONGEST_RETRY_MS: Final = 600_000
"""The same when it would push out what is protected: entries of others may make room before that."""
PARTS: Final = 16
"""So exactly is it known when entries of a device have gone: to a sixteenth of its share."""
TRIMMED: Final = 10_000
"""Entries that are taken out of the stream at a time, in 0.3 ms."""

DAY_MS: Final = 86_400_000
HEAD: Final = 10
"""Arguments of the message, before those of its plays."""
ARGUMENTS: Final = 9
"""Of each play."""

_CONSTANTS: Final = {
    "DAY": DAY_MS,
    "MAX_BOOTS": MAX_BOOTS,
    "KEEP_DAYS": KEEP_DAYS,
    "MAX_HOLES": MAX_HOLES,
    "MAX_UNFINISHED": MAX_UNFINISHED,
    "TEXT_RUNS": TEXT_RUNS,
    "LEGACY_DAYS": LEGACY_DAYS,
    "OPEN": OPEN_MS,
    "MAX_OPEN": MAX_OPEN,
    "MAX_DIGESTS": MAX_DIGESTS,
    "PROTECTED": PROTECTED_MS,
    "RETRY": RETRY_MS,
    "LONGEST_RETRY": LONGEST_RETRY_MS,
    "PARTS": PARTS,
    "TRIMMED": TRIMMED,
    "HEAD": HEAD,
    "ARGUMENTS": ARGUMENTS,
}

_BODY: Final = r"""
-- KEYS seen stream legacy; ARGV now today room share device organization boot clock bucket listed, then of each play:
-- number phase day at text content playlist duration completion. Without a boot the number is what tells the play.
-- -> {1, watermark, accepted, duplicates, plays, missing, holes lost, boots lost, entries dropped, holes}
--    {0}: the stream is full; {2, ms}: the device has its share of it, and is to come again in so long
local now, today, room, share = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local count = (#ARGV - HEAD) / ARGUMENTS
local accepted, plays, days, dropped, newest, held = 0, 0, {}, 0, nil, {}

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

-- The ms of the oldest entry, and whether it is this device's.
local function oldest()
  local entry, own = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1], false
  for i = 1, #entry[2], 2 do own = own or (entry[2][i] == 'device_id' and entry[2][i + 1] == ARGV[5]) end
  return tonumber(string.match(entry[1], '^%d+')), own
end

-- For how many ms a device with its share must stay away; nil when the room is its own, or others' is old.
local function stay_away(group)
  local ms, own = oldest()
  local sum = count
  while held[1] and held[1][1] < ms do table.remove(held, 1) end
  for _, part in ipairs(held) do sum = sum + part[2] end
  if sum <= share then return end
  if group then return RETRY end
  if not own and now - ms < PROTECTED then return math.min(LONGEST_RETRY, ms + PROTECTED - now) end
end

if count > 0 and share > 0 then
  for ms, entries in string.gmatch(redis.call('HGET', KEYS[1], 'held') or '', '(%d+):(%d+)') do
    held[#held + 1] = {tonumber(ms), tonumber(entries)}
  end
end
local length = redis.call('XLEN', KEYS[2])
-- A quarter of the room is for those that have not had their share.
local free = share > 0 and room - math.floor(room / 4) or room
if count > 0 and length > 0 and length + count > free then
  local group = slowest()
  if group then
    length = length - redis.call('XTRIM', KEYS[2], 'MINID', '~', group, 'LIMIT', TRIMMED)
    if length + count > free then length = length - redis.call('XTRIM', KEYS[2], 'MINID', group) end
  end
  if length > 0 and length + count > free then
    local wait = share > 0 and stay_away(group)
    if wait then return {2, wait} end
    if length + count > room then
      if group then return {0} end
      -- Some more than need be: trimming a stream costs more than one entry.
      local left = math.max(math.floor(room * 0.99), room - TRIMMED) - count
      dropped = redis.call('XTRIM', KEYS[2], 'MAXLEN', math.max(0, left))
    end
  end
end

local function record(i, id, phase, first)
  local at, clock, offset, late = ARGV[i + 3], ARGV[8], '', ''
  if at ~= '' then
    offset = string.format('%.0f', now - at)
    if clock ~= '' then late = string.format('%.0f', now - at - clock) end
  end
  newest = redis.call('XADD', KEYS[2], '*', 'play_id', ARGV[5] .. ':' .. ARGV[7] .. ':' .. id, 'phase', phase,
    'first', first and '1' or '0', 'device_id', ARGV[5], 'organization_id', ARGV[6], 'content_id', ARGV[i + 5],
    'playlist_id', ARGV[i + 6], 'client_time', at, 'client_text', ARGV[i + 4], 'server_time', ARGV[1],
    'offset_ms', offset, 'clock_ms', clock, 'late_ms', late, 'duration', ARGV[i + 7], 'completion', ARGV[i + 8])
  accepted = accepted + 1
  if first then
    plays = plays + 1
    days[ARGV[i + 2]] = (days[ARGV[i + 2]] or 0) + 1
  end
end

-- Counts by day, what the device has in the stream, and what is too old to be kept. The key outlives its last boot.
local function finish(renew)
  local begun = false
  for day, n in pairs(days) do begun = redis.call('HINCRBY', KEYS[1], 'd:' .. day, n) == n or begun end
  if begun then
    renew = true
    for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
      local old = string.match(field, '^d:(%d+)$')
      if old and tonumber(old) < today - KEEP_DAYS then redis.call('HDEL', KEYS[1], field) end
    end
  end
  if newest and share > 0 then
    local ms, part = tonumber(string.match(newest, '^%d+')), held[#held]
    if part and part[2] + accepted <= share / PARTS then
      part[1], part[2] = ms, part[2] + accepted
    else
      held[#held + 1] = {ms, accepted}
      -- Two neighbours are more than one part: those that are left are more than the share.
      if #held > 2 * PARTS + 2 then table.remove(held, 1) end
    end
    local texts = {}
    for i = 1, #held do texts[i] = string.format('%.0f:%.0f', held[i][1], held[i][2]) end
    redis.call('HSET', KEYS[1], 'held', table.concat(texts, ' '))
  end
  if renew then redis.call('EXPIRE', KEYS[1], (KEEP_DAYS + 1) * 86400) end
end

if ARGV[7] == '' then
  local i, bucket = HEAD + 1, ARGV[9]
  local raw, at = ARGV[i], tonumber(ARGV[i + 3])
  local id = string.gsub(raw, '.', function(byte) return string.format('%02x', string.byte(byte)) end)
  local names = {'open', 'ended', 'today'}
  for back = 0, LEGACY_DAYS do names[#names + 1] = (today - back) .. ':' .. bucket end
  local found = redis.call('HMGET', KEYS[3], unpack(names))
  for n = 4, bucket ~= '' and #names or 0 do
    local from = found[n] and string.find(found[n], raw, 1, true)
    while from do
      if from % #raw == 1 then return {1, -1, 0, 1, 0, -1, 0, 0, dropped, ''} end
      from = string.find(found[n], raw, from + 1, true)
    end
  end
  if found[3] ~= ARGV[2] then
    for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
      local old = string.match(field, '^(%d+):')
      if old and tonumber(old) < today - LEGACY_DAYS then redis.call('HDEL', KEYS[3], field) end
    end
  end
  local content = string.sub(redis.sha1hex(ARGV[i + 5]), 1, 16)
  local starts = ARGV[i + 1] == '1'
  -- The other phase, if it came first: of an end the start that is open, of a start the first end after it.
  local open, ended, other, nearest = {}, {}, nil, nil
  for line, key, ms, ending, ended_at in string.gmatch(found[2] or '', '((%x+) (%d+) (%x+) (%d+)\n)') do
    if now - ms < OPEN then
      ended[#ended + 1] = line
      ended_at = tonumber(ended_at)
      if starts and key == content and at and at <= ended_at and ended_at - at < OPEN then
        if not nearest or ended_at < nearest[2] then other, nearest = ending, {#ended, ended_at} end
      end
    end
  end
  if nearest then table.remove(ended, nearest[1]) end
  for line, key, ms, start in string.gmatch(found[1] or '', '((%x+) (%d+) (%x+)\n)') do
    if now - ms < OPEN then
      if key ~= content or (starts and other) then
        open[#open + 1] = line
      elseif not starts then
        other = start
      end
    end
  end
  local line = content .. ' ' .. ARGV[1] .. ' ' .. id
  if not other and starts then table.insert(open, 1, line .. '\n') end
  if not other and not starts and at and at >= 0 then table.insert(ended, 1, string.format('%s %.0f\n', line, at)) end
  record(i, other or id, starts and 'start' or 'end', not other)
  local fields = {'open', table.concat(open, '', 1, math.min(#open, MAX_OPEN)),
    'ended', table.concat(ended, '', 1, math.min(#ended, MAX_OPEN)), 'today', ARGV[2]}
  if bucket ~= '' then
    fields[7], fields[8] = names[4], string.sub((found[4] or '') .. raw, -MAX_DIGESTS * #raw)
  end
  redis.call('HSET', KEYS[3], unpack(fields))
  redis.call('EXPIRE', KEYS[3], (LEGACY_DAYS + 1) * 86400)
  finish(false)
  return {1, -1, 1, 0, plays, -1, 0, 0, dropped, ''}
end

local field, text_field = 'r:' .. ARGV[7], 'b:' .. ARGV[7]
local found = redis.call('HMGET', KEYS[1], field, text_field, 'missing')
local all_missing = tonumber(found[3] or 0)

-- Last ms, lost, newest number, missing, holes, runs.
local function parse(value)
  local last, lost, top, missing, holes, from = string.match(value, '^(%d+) (%d+) (%d+) (%d+) (%d+) ()')
  return tonumber(last), tonumber(lost), tonumber(top), tonumber(missing), tonumber(holes), string.sub(value, from)
end

-- The same of a text; nil when it is none.
local function parse_text(value)
  local last, lost, top, text = string.match(value, '^(%d+) (%d+) (%d+) ([%d:,]*)$')
  if not last then return end
  local packed, n, high, missing, holes = {}, 0, tonumber(top), 0, 0
  for code, length in string.gmatch(text, '([0-3]):(%d+)') do
    n = n + 1
    packed[n] = struct.pack('>I7B', math.max(0, high), code)
    if code == '0' then missing, holes = missing + length, holes + 1 end
    high = high - length
  end
  if high ~= 0 then return end
  for i = 1, math.floor(n / 2) do packed[i], packed[n + 1 - i] = packed[n + 1 - i], packed[i] end
  return tonumber(last), tonumber(lost), tonumber(top), missing, holes, table.concat(packed)
end

local last, lost, top, missing, holes, runs = parse(found[1] or '0 0 0 0 0 ')
local before, boots_lost = missing, 0

-- Runs are written anew from the front: most are copied as they are. `high` is the last number that is written, of a
-- run that may still grow; `done` are the old runs that are read.
local out, high, code, done = {}, 0, nil, 0

local function run(r) return struct.unpack('>I7B', runs, r * 8 - 7) end

local function write()
  if code then
    out[#out + 1] = struct.pack('>I7B', high, code)
    if code == 0 then holes = holes + 1 end
  end
end

local function push(to, as)
  if as ~= code then write() end
  high, code = to, as
end

-- A worker of the release before has written since.
if found[2] and not (found[1] and string.byte(found[2]) == 48) then
  local text = {parse_text(found[2])}
  if text[1] and not found[1] then
    last, lost, top, missing, holes, runs = unpack(text)
    before = missing
  elseif text[1] then
    -- A phase is in when one of the two says so. That worker has counted what is missing by its text, and of more runs
    -- it did not know.
    before = #runs > 8 * TEXT_RUNS and missing + text[4] or text[4]
    last, lost = math.max(last, text[1]), math.max(lost, text[2])
    holes, missing = 0, 0
    local r, t, to, as, text_to, text_as = 0, 0, 0, 0, 0, 0
    while high < math.max(top, text[3]) do
      if to == high then
        r = r + 1
        to, as = math.huge, 0
        if r * 8 <= #runs then to, as = run(r) end
      end
      if text_to == high then
        t = t + 1
        text_to, text_as = math.huge, 0
        if t * 8 <= #text[6] then text_to, text_as = struct.unpack('>I7B', text[6], t * 8 - 7) end
      end
      local joined = (as == text_as or text_as == 0) and as or as == 0 and text_as or 3
      if joined == 0 then missing = missing + math.min(to, text_to) - high end
      push(math.min(to, text_to), joined)
    end
    write()
    top, runs, out, high, code = high, table.concat(out), {}, 0, nil
  end
end

-- A boot that is not known: room for it among the others.
if count > 0 and now - last >= KEEP_DAYS * DAY then
  last, lost, top, missing, holes, runs, before = 0, 0, 0, 0, 0, '', 0
  local fields, boots, kept, first, first_at = redis.call('HGETALL', KEYS[1]), {}, 0, nil, nil
  for i = 1, #fields, 2 do
    local kind, boot = string.match(fields[i], '^([rb]):(.*)$')
    if kind then
      boots[boot] = boots[boot] or {ms = 0}
      boots[boot].ms = math.max(boots[boot].ms, tonumber(string.match(fields[i + 1], '^%d+')) or 0)
      boots[boot][kind] = fields[i + 1]
    end
  end
  local function forget(boot, known)
    redis.call('HDEL', KEYS[1], 'r:' .. boot, 'b:' .. boot)
    if known.r then
      all_missing = all_missing - select(4, parse(known.r))
    else
      for length in string.gmatch(known.b, '0:(%d+)') do all_missing = all_missing - length end
    end
  end
  for boot, known in pairs(boots) do
    if now - known.ms >= KEEP_DAYS * DAY then
      forget(boot, known)
    else
      kept = kept + 1
      if not first or known.ms < first_at then first, first_at = boot, known.ms end
    end
  end
  if kept >= MAX_BOOTS then
    forget(first, boots[first])
    boots_lost = 1
  end
end

local function read()
  done = done + 1
  local to, as = run(done)
  if as == 0 then holes = holes - 1 end
  return to, as
end

local function copy(to)
  if to > done then push(read()) end
  if to > done then
    write()
    out[#out + 1] = string.sub(runs, done * 8 + 1, to * 8 - 8)
    done, code = to - 1, nil
    push(read())
  end
end

-- The run that has a number, among those that are not read.
local function find(number)
  local low, up = done + 1, #runs / 8
  while low < up do
    local middle = math.floor((low + up) / 2)
    if run(middle) < number then low = middle + 1 else up = middle end
  end
  return low
end

local numbers, phases, was = {}, {}, {}
local sorted = true
for i = HEAD + 1, #ARGV, ARGUMENTS do
  local number, phase = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  if not phases[number] then
    sorted = sorted and number > (numbers[#numbers] or 0)
    numbers[#numbers + 1], phases[number] = number, phase
  elseif phases[number] ~= phase then
    phases[number] = 3
  end
end
if not sorted then table.sort(numbers) end

local n = 1
while n <= #numbers and numbers[n] <= top do
  copy(find(numbers[n]) - 1)
  local to, as = read()
  while n <= #numbers and numbers[n] <= to do
    local number = numbers[n]
    local whole = as == 0 and phases[number] or (as == phases[number] and as or 3)
    was[number] = as
    if whole ~= as then
      if number > high + 1 then push(number - 1, as) end
      push(number, whole)
      if as == 0 then missing = missing - 1 end
    end
    n = n + 1
  end
  if high < to then push(to, as) end
end
copy(#runs / 8)
for m = n, #numbers do
  local number = numbers[m]
  if number > high + 1 then
    missing = missing + number - 1 - high
    push(number - 1, 0)
  end
  push(number, phases[number])
  was[number], top = 0, number
end
write()
runs, out, high, code, done = table.concat(out), {}, 0, nil, 0

for i = HEAD + 1, #ARGV, ARGUMENTS do
  local number, phase = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  local known = was[number]
  if known ~= phase and known ~= 3 then
    record(i, ARGV[i], phase == 1 and 'start' or 'end', known == 0)
    was[number] = known + phase
  end
end

-- The bounds: the oldest holes are given up, the oldest unfinished plays count as finished.
local holes_lost = 0
local given_up = holes - MAX_HOLES
local surplus = #runs / 8 - 2 * (math.min(holes, MAX_HOLES) + MAX_UNFINISHED) - 1
if given_up > 0 or surplus > 0 then
  local r = 1
  while r * 8 <= #runs and (given_up > 0 or surplus > 0) do
    local as = string.byte(runs, r * 8)
    if (as == 0 and given_up > 0) or ((as == 1 or as == 2) and surplus > 0) then
      copy(r - 1)
      local from = high
      local to = read()
      push(to, 3)
      if as == 0 then
        lost, missing, given_up, holes_lost = lost + to - from, missing - (to - from), given_up - 1, holes_lost + 1
      else
        surplus = surplus - 1
      end
    end
    r = r + 1
  end
  copy(#runs / 8)
  write()
  runs = table.concat(out)
end

-- Holes for the ack, oldest first, and where the first begins.
local listed, most, watermark, r = {}, tonumber(ARGV[10]), nil, 1
while r * 8 <= #runs and (#listed < most or not watermark) do
  if string.byte(runs, r * 8) == 0 then
    local low, to = r > 1 and run(r - 1) or 0, run(r)
    watermark = watermark or low
    if #listed < most then listed[#listed + 1] = string.format('[%.0f,%.0f]', low + 1, to) end
  end
  r = r + 1
end
all_missing = math.max(0, all_missing - before + missing)
if count > 0 then
  local ms = math.max(now, last)
  local fields = {field, string.format('%.0f %.0f %.0f %.0f %.0f ', ms, lost, top, missing, holes) .. runs,
    'missing', string.format('%.0f', all_missing)}
  if #runs <= 8 * TEXT_RUNS then
    local texts, low = {}, 0
    for r = #runs / 8, 1, -1 do
      local to, as = run(r)
      low = r > 1 and run(r - 1) or 0
      texts[#texts + 1] = string.format('%d:%.0f', as, to - low)
    end
    fields[5], fields[6] = text_field, string.format('0%.0f %.0f %.0f ', ms, lost, top) .. table.concat(texts, ',')
  elseif found[2] then
    redis.call('HDEL', KEYS[1], text_field)
  end
  redis.call('HSET', KEYS[1], unpack(fields))
  finish(math.floor(last / DAY) < today)
end
return {1, watermark or top, accepted, count - accepted, plays, all_missing, holes_lost, boots_lost, dropped,
  table.concat(listed, ',')}
"""

SCRIPT: Final = "".join(f"local {name} = {value}\n" for name, value in _CONSTANTS.items()) + _BODY
