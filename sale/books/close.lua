#!lua flags=allow-oom
-- Refuse every script on a product until books are opened for it (see open.lua). Also when Redis is full.
--
-- KEYS[1] stock:{p}   ARGV[1] epoch of the books that are begun: only these may be opened; '' to leave that as it is

redis.call('HSET', KEYS[1], 'state', 'closed')
if ARGV[1] ~= '' then redis.call('HSET', KEYS[1], 'building', ARGV[1]) end
