#!lua flags=allow-oom
--[[
  Note why a task on the board waits.

  KEYS  task
  ARGV  reason, '' none
]]
local t = redis.call('HMGET', KEYS[1], 'state', 'reason')
if t[1] == 'board' and (t[2] or '') ~= ARGV[1] then
  if ARGV[1] == '' then
    redis.call('HDEL', KEYS[1], 'reason')
  else
    redis.call('HSET', KEYS[1], 'reason', ARGV[1])
  end
end
return 1
