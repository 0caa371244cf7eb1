#!lua flags=allow-oom
--[[
  Make schedules known, and forget others. Only for the holder of the lease.

  KEYS  names, log of changes, lease
  ARGV  value of the lease for this holder and token, prefix of a schedule's key, how many become
        known, pairs: name, schedule; how long to know where the others stood (s), names of others
  Returns  1; 0 the lease is lost
]]
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return 0
end
local first_other = 4 + 2 * ARGV[3]
local changed = false
for n = 4, first_other - 1, 2 do
  local key = ARGV[2] .. ARGV[n]
  local is_new = redis.call('SADD', KEYS[1], ARGV[n]) == 1
  if is_new or redis.call('HGET', key, 'schedule') ~= ARGV[n + 1] then
    redis.call('HSET', key, 'schedule', ARGV[n + 1])
    redis.call('PERSIST', key)
    changed = true
  end
end
for n = first_other + 1, #ARGV do
  if redis.call('SREM', KEYS[1], ARGV[n]) == 1 then
    redis.call('EXPIRE', ARGV[2] .. ARGV[n], ARGV[first_other])
    changed = true
  end
end
if changed then
  redis.call('XADD', KEYS[2], 'MAXLEN', '1', '*', 'c', '1')
end
return 1
