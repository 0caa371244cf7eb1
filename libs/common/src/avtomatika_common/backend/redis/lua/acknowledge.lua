#!lua flags=allow-oom
--[[
  Entries are done with.

  KEYS  stream
  ARGV  ids
]]
redis.call('XACK', KEYS[1], 'g', unpack(ARGV))
redis.call('XDEL', KEYS[1], unpack(ARGV))
return 1
