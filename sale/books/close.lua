#!lua flags=allow-oom
-- Make a product refuse every script until its books are opened (see open.lua). Works also when Redis is full.
--
-- KEYS[1] stock:{p}   ARGV[1] epoch of the rebuild that begins: only its books may be opened; '' changes nothing about that

redis.call('HSET', KEYS[1], 'state', 'closed')
if ARGV[1] ~= '' then redis.call('HSET', KEYS[1], 'building', ARGV[1]) end
