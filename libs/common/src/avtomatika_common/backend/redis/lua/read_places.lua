#!lua flags=no-writes
--[[
  Places of a worker that are taken by tasks it is said to have, from a cursor on.

  KEYS  hold, offer: of the worker
  ARGV  cursor, about how many
  Returns  {next cursor, task, number of its offer, ...}
]]
local cut = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local found = {cut[1]}
for n = 1, #cut[2], 2 do
  if tonumber(cut[2][n + 1]) == math.huge then
    found[#found + 1] = cut[2][n]
    found[#found + 1] = redis.call('HGET', KEYS[2], cut[2][n]) or ''
  end
end
return found
