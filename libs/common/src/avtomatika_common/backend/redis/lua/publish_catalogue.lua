#!lua flags=allow-oom
--[[
  Make blueprints known; the catalogue is of another version only if one of them changed.

  KEYS  entries, log of versions
  ARGV  pairs: blueprint, entry
]]
local changed = false
for n = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[n]) ~= ARGV[n + 1] then
    redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1])
    changed = true
  end
end
if changed then
  redis.call('XADD', KEYS[2], 'MAXLEN', '1', '*', 'c', '1')
end
return 1
