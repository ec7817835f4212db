#!lua flags=allow-oom
-- Pause, resume or end the sale of one product, by an operator's newest action in Postgres. Idempotent. It does not change
-- books that are not in force: the rebuild that opens them reads the same row. Settling continues in every state.
--
-- KEYS[1] stock:{p}
-- ARGV[1] id of the newest action   ARGV[2] state ('open' or 'paused')   ARGV[3] opens_at (ms) or ''   ARGV[4] closes_at (ms) or ''
-- ARGV[5] '1': the sale is over by Postgres' clock, so it ends now, even if Redis' clock is before closes_at
--
-- Returns 'applied', 'stale' (a newer action is known) or 'unverified' (the books are closed, or of another Redis run).

local stock = redis.call('HMGET', KEYS[1], 'run', 'state', 'sale_action')
local run = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
if stock[1] ~= run or stock[2] == 'closed' then return 'unverified' end
if tonumber(stock[3] or 0) > tonumber(ARGV[1]) then return 'stale' end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'sale_action', ARGV[1])
for i, field in ipairs({'opens_at_ms', 'closes_at_ms'}) do
  if ARGV[i + 2] == '' then redis.call('HDEL', KEYS[1], field) else redis.call('HSET', KEYS[1], field, ARGV[i + 2]) end
end
if ARGV[5] == '1' then
  local now = tonumber(redis.call('TIME')[1]) * 1000
  if now < tonumber(ARGV[4]) then redis.call('HSET', KEYS[1], 'closes_at_ms', string.format('%.0f', now)) end
end
return 'applied'
