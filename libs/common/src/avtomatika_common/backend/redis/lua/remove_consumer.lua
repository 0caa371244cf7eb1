#!lua flags=allow-oom
--[[
  Forget a consumer that is dead and has nothing pending.

  KEYS  stream
  ARGV  its alive key, its name
  Returns  1 removed, 0 alive or busy
]]
if redis.call('EXISTS', ARGV[1]) == 1 then
  return 0
end
if #redis.call('XPENDING', KEYS[1], 'g', '-', '+', '1', ARGV[2]) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'g', ARGV[2])
return 1
