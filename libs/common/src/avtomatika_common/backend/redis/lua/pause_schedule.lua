#!lua flags=allow-oom
--[[
  Pause a schedule, or resume it.

  KEYS  schedule, names, log of changes
  ARGV  name, '1' paused or '' not, when (Unix seconds)
  Returns  1 (also when it was so); 0 there is none of this name
]]
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 0 then
  return 0
end
if (redis.call('HGET', KEYS[1], 'paused') or '') ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'paused', ARGV[2])
  if ARGV[2] == '' then
    redis.call('HSET', KEYS[1], 'resumed_at', ARGV[3])
  end
  redis.call('XADD', KEYS[3], 'MAXLEN', '1', '*', 'c', '1')
end
return 1
