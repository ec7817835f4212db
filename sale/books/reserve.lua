#!lua
-- Reserve units of one product for one order, or return why not. All checks come before the first write, because an error
-- half-way is not rolled back. Without the allow-oom flag a full Redis refuses the whole script at the start.
--
-- KEYS[1] stock:{p}   hash: run epoch state initial available held sold version opens_at_ms closes_at_ms per_user_limit max_held
--                     held_orders (max_held limits orders, not units: one large order delays no other)
-- KEYS[2] held:{p}    hash: order id -> entry (see entry.py)
-- KEYS[3] due:{p}     sorted set: order id by the time (ms) of the relay's next check
-- KEYS[4] buyers:{p}  hash: user id -> units of live and confirmed orders
-- KEYS[5] order:ID    hash: the read model
-- KEYS[6] key record of (user, Idempotency-Key), or KEYS[5] again if the order id is the key
-- KEYS[7] unstored:{u} sorted set: the user's orders that Postgres may not have yet; project.lua removes them
-- KEYS[8] as KEYS[6], under the name that an earlier release used
-- KEYS[9] declined:{p} hash: user id -> recent orders with a declined payment (see settle.lua)
-- ARGV[1] order id   ARGV[2] user id   ARGV[3] quantity   ARGV[4] body ("product:quantity")
-- ARGV[5] order.placed without its last fields and closing brace   ARGV[6] unit price (cents)   ARGV[7] currency
-- ARGV[8] lifetime of KEYS[6] and KEYS[7] (ms)   ARGV[9] delay of the relay's first check (ms)   ARGV[10] product id
-- ARGV[11] the time of its first acceptance (ms) if it was lost with older books, else ''. Pause, window, declines and
--          max_held apply to new orders only
-- ARGV[12], ARGV[13] the newest epoch and version of these books that the caller knows
-- ARGV[14] order id in the form of key records   ARGV[15] declined orders after which a user is refused; 0: never
--
-- Returns one of
--   {'held', epoch, version, available, placed (ms)}  units taken
--   {'known', record}                                 this key was accepted before: 'order-id product:quantity'
--   {'unverified'}                                    the books were not made for this Redis run, are being rebuilt, or
--                                                     are older than the caller knows them: then they are closed too
--   {'paused'} {'not_open', opens_at_ms} {'closed'} {'user_limit'}
--   {'declined', wait_ms}                             too many of the user's payments were declined; wait_ms: until they are dropped
--   {'sold_out', epoch, version} {'busy'}

local stock = redis.call('HMGET', KEYS[1], 'run', 'state', 'epoch', 'version', 'available', 'opens_at_ms', 'closes_at_ms',
  'per_user_limit', 'max_held', 'held_orders')
local run = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
if stock[1] ~= run or stock[2] == 'closed' then return {'unverified'} end
local behind = tonumber(stock[3]) - tonumber(ARGV[12])
if behind < 0 or (behind == 0 and tonumber(stock[4]) < tonumber(ARGV[13])) then
  redis.call('HSET', KEYS[1], 'state', 'closed')
  return {'unverified'}
end

if KEYS[6] == KEYS[5] then
  local known = redis.call('HMGET', KEYS[5], 'user', 'body')
  if known[1] then return {'known', ARGV[1] .. ' ' .. known[2]} end
else
  local known = redis.call('GET', KEYS[6]) or redis.call('GET', KEYS[8])
  if known then return {'known', known} end
end

-- Also once its key record has expired: an order takes its units once.
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return {'known', ARGV[1] .. ' ' .. ARGV[4]} end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if ARGV[11] == '' then
  local opens, closes = tonumber(stock[6] or ''), tonumber(stock[7] or '')
  if stock[2] == 'paused' then return {'paused'} end
  if opens and now < opens then return {'not_open', opens} end
  if closes and now >= closes then return {'closed'} end
  local declines = tonumber(ARGV[15])
  if declines > 0 and tonumber(redis.call('HGET', KEYS[9], ARGV[2]) or 0) >= declines then
    return {'declined', redis.call('PTTL', KEYS[9])}
  end
end
local placed = tonumber(ARGV[11]) or now
local placed_text = string.format('%.0f', placed)

local quantity = tonumber(ARGV[3])
local limit = tonumber(stock[8] or '')
if limit and tonumber(redis.call('HGET', KEYS[4], ARGV[2]) or 0) + quantity > limit then return {'user_limit'} end
local available = tonumber(stock[5]) - quantity
if available < 0 then return {'sold_out', tonumber(stock[3]), tonumber(stock[4])} end
if tonumber(stock[10] or 0) >= tonumber(stock[9]) and ARGV[11] == '' then return {'busy'} end

redis.call('HINCRBY', KEYS[1], 'available', -quantity)
redis.call('HINCRBY', KEYS[1], 'held', quantity)
redis.call('HINCRBY', KEYS[1], 'held_orders', 1)
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HSET', KEYS[2], ARGV[1],
  'h ' .. stock[3] .. ' ' .. version .. ' ' .. available .. ' ' .. ARGV[3] .. ' ' .. ARGV[2] .. ' ' .. placed_text .. ' ' .. ARGV[5])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[9]), ARGV[1])
redis.call('ZADD', KEYS[7], 0, ARGV[1])
redis.call('PEXPIRE', KEYS[7], ARGV[8])
redis.call('HINCRBY', KEYS[4], ARGV[2], quantity)
redis.call('HSET', KEYS[5], 'user', ARGV[2], 'product', ARGV[10], 'quantity', ARGV[3], 'price', ARGV[6], 'currency', ARGV[7],
  'status', 'queued', 'rank', 10, 'placed', placed_text, 'updated', placed_text, 'steps', 'q0', 'body', ARGV[4])
if KEYS[6] ~= KEYS[5] then redis.call('SET', KEYS[6], ARGV[14] .. ' ' .. ARGV[4], 'PX', ARGV[8]) end
return {'held', tonumber(stock[3]), version, available, placed}
