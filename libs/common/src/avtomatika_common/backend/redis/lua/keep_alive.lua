#!lua flags=allow-oom
--[[
  An instance is alive; also said when Redis is full.

  KEYS  alive
  ARGV  for how long (ms)
]]
return redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
