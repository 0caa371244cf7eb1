#!lua flags=allow-oom
--[[
  Entries a consumer has read and not acknowledged, oldest first.

  KEYS  stream
  ARGV  consumer, behind which id ('-' from the first), at most so many
  Returns  {{id, deliveries, payload}, ...}; entries that are no more are acknowledged, payload ''
]]
local found = {}
local pending = redis.call('XPENDING', KEYS[1], 'g', ARGV[2], '+', ARGV[3], ARGV[1])
for n, row in ipairs(pending) do
  local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
  if not entry then
    redis.call('XACK', KEYS[1], 'g', row[1])
  end
  found[n] = {row[1], row[4], entry and entry[2][2] or ''}
end
return found
