#!lua flags=allow-oom
--[[
  Keep sockets of one gateway; one that had expired is taken again.

  KEYS  exp
  ARGV  w, gateway, for how long (ms), then pairs: worker, connection
  Returns  {worker, connection, ...}: those that are another connection's by now
]]
local lost = {}
for n = 4, #ARGV, 2 do
  local key, mine = ARGV[1] .. 'sock:' .. ARGV[n], ARGV[n + 1] .. '|' .. ARGV[2]
  local socket = redis.call('GET', key)
  if socket and socket ~= mine then
    lost[#lost + 1] = ARGV[n]
    lost[#lost + 1] = ARGV[n + 1]
  else
    redis.call('SET', key, mine, 'PX', ARGV[3])
  end
end
return lost
