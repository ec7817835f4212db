#!lua flags=allow-oom
-- Write one status into the read model, unless it has one of the same or a higher rank. A terminal status from the log proves
-- that its announcement was acknowledged, so the settled entry of that version is deleted here. The entry goes last.
--
-- KEYS[1] order:ID   KEYS[2] held:{p}   KEYS[3] due:{p}   KEYS[4] unstored:{u}
-- ARGV[1] order id   ARGV[2] status   ARGV[3] rank   ARGV[4] at (ms)   ARGV[5] steps (see read_model.py)
-- ARGV[6] epoch and version of the settlement ("3 17"), '' if there is none   ARGV[7] lifetime (ms): Postgres answers afterwards
-- ARGV[8] user   ARGV[9] product   ARGV[10] quantity   ARGV[11] unit price (cents)   ARGV[12] currency   ARGV[13] placed (ms)
--
-- Returns 1 when the read model changed, else 0.

local old = redis.call('HMGET', KEYS[1], 'rank', 'steps')
local changed = 0
redis.call('ZREM', KEYS[4], ARGV[1]) -- Postgres has every order whose status is on the log
if tonumber(ARGV[3]) > tonumber(old[1] or 0) then
  redis.call('HSET', KEYS[1], 'user', ARGV[8], 'product', ARGV[9], 'quantity', ARGV[10], 'price', ARGV[11], 'currency', ARGV[12],
    'status', ARGV[2], 'rank', ARGV[3], 'placed', ARGV[13], 'updated', ARGV[4],
    'steps', (old[2] or 'q0') .. ';' .. ARGV[5], 'body', ARGV[9] .. ':' .. ARGV[10])
  redis.call('PEXPIRE', KEYS[1], ARGV[7])
  changed = 1
end
if ARGV[6] ~= '' then
  local entry = redis.call('HGET', KEYS[2], ARGV[1])
  if entry and string.match(entry, '^[sr] (%d+ %d+) ') == ARGV[6] then
    redis.call('HDEL', KEYS[2], ARGV[1])
    redis.call('ZREM', KEYS[3], ARGV[1])
  end
end
return changed
