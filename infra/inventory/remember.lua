#!lua
-- Give an order the read model that a lost or older Redis no longer shows; one of the same or a higher rank stays.
--
-- KEYS[1] order:ID
-- ARGV[1] rank   ARGV[2..] field, value, ... (see reserve.lua)
--
-- Returns 1 when it was written, else 0.

if tonumber(ARGV[1]) <= tonumber(redis.call('HGET', KEYS[1], 'rank') or 0) then return 0 end
local fields = {'HSET', KEYS[1], 'rank'}
for i = 1, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call(unpack(fields))
return 1
