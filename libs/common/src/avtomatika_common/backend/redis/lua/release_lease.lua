#!lua flags=allow-oom
--[[
  Give a lease back before its time.

  KEYS  lease
  ARGV  its value for this holder and token
]]
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
