#!lua flags=allow-oom
--[[
  Note where a schedule stands. Only for the holder of the lease.

  KEYS  schedules, lease
  ARGV  value of the lease for this holder and token, schedule, where it stands
  Returns  1; 0 the lease is lost
]]
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
