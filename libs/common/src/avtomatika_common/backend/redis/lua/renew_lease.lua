#!lua flags=allow-oom
--[[
  Hold a lease longer.

  KEYS  lease
  ARGV  its value for this holder and token, how long (ms)
  Returns  1; 0 it is lost
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
