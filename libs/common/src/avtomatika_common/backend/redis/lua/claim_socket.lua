#!lua flags=allow-oom
--@include workers
--[[
  A connection becomes the worker's socket; the gateway of an earlier one is told to close that.

  KEYS  its socket
  ARGV  w, worker, connection, gateway, how long it holds unless renewed (ms)
]]
local mine = ARGV[3] .. '|' .. ARGV[4]
if redis.call('GET', KEYS[1]) ~= mine then
  close_socket(ARGV[1], ARGV[2])
end
redis.call('SET', KEYS[1], mine, 'PX', ARGV[5])
return 1
