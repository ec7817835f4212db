#!lua flags=allow-oom
-- Move the units of one terminal order: to the buyer (sold) or back on sale (released). Idempotent: a repetition returns the
-- first version. The quantity comes from the entry, never from the caller. It may run when Redis is full, because settling
-- frees memory.
--
-- KEYS[1] stock:{p}   KEYS[2] held:{p}   KEYS[3] due:{p}   KEYS[4] buyers:{p}
-- KEYS[5] declined:{p}: user id -> recently declined orders. It is created with the first decline, and expires as a whole
-- ARGV[1] order id    ARGV[2] 's' (sold) or 'r' (released)   ARGV[3] delay of the relay's next check (ms)
-- ARGV[4], ARGV[5] the newest epoch and version of these books that the caller knows: older books are closed
-- ARGV[6] how long declines are counted (ms), '' if the payment was not declined
--
-- Returns one of
--   {'settled', epoch, version, available, returned}   returned: units that went back on sale
--   {'none'}                                           no entry: it was settled and announced before
--   {'unverified'}                                     the books are not in force: they will be rebuilt
--   {'conflict', 's' or 'r'}                           it was settled with the opposite result

local stock = redis.call('HMGET', KEYS[1], 'run', 'state', 'epoch', 'version')
local run = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
if stock[1] ~= run or stock[2] == 'closed' then return {'unverified'} end
local behind = tonumber(stock[3]) - tonumber(ARGV[4])
if behind < 0 or (behind == 0 and tonumber(stock[4]) < tonumber(ARGV[5])) then
  redis.call('HSET', KEYS[1], 'state', 'closed')
  return {'unverified'}
end

local entry = redis.call('HGET', KEYS[2], ARGV[1])
if not entry then return {'none'} end
local state, epoch, version, available, quantity, user, placed =
  string.match(entry, '^(%a) (%d+) (%d+) (%d+) (%d+) (%d+) %d+ (.*)$')
quantity = tonumber(quantity)
local returned = ARGV[2] == 'r' and quantity or 0
if state ~= 'h' then
  if state ~= ARGV[2] then return {'conflict', state} end
  return {'settled', tonumber(epoch), tonumber(version), tonumber(available), returned}
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HINCRBY', KEYS[1], 'held', -quantity)
if quantity > 0 then redis.call('HINCRBY', KEYS[1], 'held_orders', -1) end -- else it ended before a rebuild, which does not count it
redis.call('HINCRBY', KEYS[1], ARGV[2] == 'r' and 'available' or 'sold', quantity)
version = redis.call('HINCRBY', KEYS[1], 'version', 1)
available = redis.call('HGET', KEYS[1], 'available')
if returned > 0 and redis.call('HINCRBY', KEYS[4], user, -returned) <= 0 then redis.call('HDEL', KEYS[4], user) end
if ARGV[6] ~= '' and quantity > 0 then
  redis.call('HINCRBY', KEYS[5], user, 1)
  if redis.call('PTTL', KEYS[5]) < 0 then redis.call('PEXPIRE', KEYS[5], ARGV[6]) end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. stock[3] .. ' ' .. version .. ' ' .. available .. ' ' .. quantity ..
  ' ' .. user .. ' ' .. string.format('%.0f', now) .. ' ' .. placed)
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[3]), ARGV[1])
return {'settled', tonumber(stock[3]), version, tonumber(available), returned}
