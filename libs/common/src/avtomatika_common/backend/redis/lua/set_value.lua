#!lua flags=allow-oom
--[[
  Keep a value of a blueprint's data store; also when Redis is full: a handler that runs is to go on.

  KEYS  data store
  ARGV  key, value
]]
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
