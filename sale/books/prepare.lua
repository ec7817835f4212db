#!lua flags=allow-oom
-- Write one chunk of the books in preparation, and the parts that are true at once: key records and read models.
-- It may run when Redis is full, because opening frees as much memory: else a full Redis that restarts would stay closed.
--
-- KEYS[1..3] the prepared held, due and buyers (the other keys are in the chunk: one primary, see docs/architecture.md)
-- ARGV[1] MessagePack of {
--   orders: {{order id, entry, next check (ms)}, ...},   users: {{user id, units to add}, ...},
--   key records: {{key, value, lifetime (ms)}, ...}     an existing one stays
--   read models: {{key, rank, {field, value, ...}, unstored}, ...}   one of the same or a higher rank stays; `unstored`:
--     for an order that Postgres may not have yet, the key of the user's set of such orders, and its lifetime (ms)
-- }

local orders, users, records, models = unpack(cmsgpack.unpack(ARGV[1]))
for _, order in ipairs(orders) do
  redis.call('HSET', KEYS[1], order[1], order[2])
  redis.call('ZADD', KEYS[2], order[3], order[1])
end
for _, user in ipairs(users) do redis.call('HINCRBY', KEYS[3], user[1], user[2]) end
for _, record in ipairs(records) do redis.call('SET', record[1], record[2], 'NX', 'PX', record[3]) end
for _, model in ipairs(models) do
  if model[2] > tonumber(redis.call('HGET', model[1], 'rank') or 0) then
    redis.call('HSET', model[1], 'rank', model[2], unpack(model[3]))
    if model[4] then
      redis.call('ZADD', model[4][1], 0, string.sub(model[1], 7))
      redis.call('PEXPIRE', model[4][1], model[4][2])
    end
  end
end
