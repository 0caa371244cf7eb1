#!lua flags=allow-oom
--[[
  A connection has ended; a newer socket of the worker is left alone.

  KEYS  its socket
  ARGV  connection
]]
local socket = redis.call('GET', KEYS[1])
if socket and string.match(socket, '^[^|]*') == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
