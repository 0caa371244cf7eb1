#!lua flags=no-writes
--@include workers
--[[
  KEYS  exp
  Returns  how many registrations are live
]]
return redis.call('ZCOUNT', KEYS[1], '(' .. now_ms(), '+inf')
