#!lua flags=allow-oom
-- The last write of a rebuild: put the prepared books in force at once, for the Redis run for which they were made.
--
-- KEYS[1] stock:{p}  KEYS[2] held:{p}  KEYS[3] due:{p}  KEYS[4] buyers:{p}  KEYS[5..7] the prepared held, due and buyers
-- ARGV[1] run seen at the start (see run.py)   ARGV[2] epoch   ARGV[3..] field, value, ... of the stock hash
--
-- A rebuild writes its epoch into the stock hash (field `building`) before it reads anything. Two may run at once if one has
-- lost its lock unnoticed. Then only the later one opens, because the earlier one read before the later one closed.
--
-- Returns 'opened', 'other_run' (Redis has restarted, or taken other data) or 'stale' (these or newer books are in force, or in preparation).

local run = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
if run ~= ARGV[1] then return 'other_run' end
if tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0) >= tonumber(ARGV[2]) then return 'stale' end
local building = redis.call('HGET', KEYS[1], 'building')
if building and building ~= ARGV[2] then return 'stale' end
for i = 2, 4 do
  redis.call('UNLINK', KEYS[i])
  if redis.call('EXISTS', KEYS[i + 3]) == 1 then redis.call('RENAME', KEYS[i + 3], KEYS[i]) end
end
redis.call('DEL', KEYS[1])
local fields = {'HSET', KEYS[1], 'run', ARGV[1], 'epoch', ARGV[2], 'version', 0}
for i = 3, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call(unpack(fields))
return 'opened'
