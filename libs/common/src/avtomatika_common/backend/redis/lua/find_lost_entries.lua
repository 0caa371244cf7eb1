#!lua flags=no-writes
--@include lanes
--[[
  Entries of a lane that were delivered, and are neither pending nor answered: nobody would ever get
  them. Only a hand can do that, to the group or its consumers.

  KEYS  lane
  ARGV  first id, how many at most
  Returns  {next first id, '0' no more; id, ...}
]]
local first, left, bytes = ARGV[1], tonumber(ARGV[2]), 65536
local last, found = last_delivered(KEYS[1]), {'0'}
if not last then
  return found
end
while left > 0 and bytes > 0 do
  local entry = redis.call('XRANGE', KEYS[1], first, last, 'COUNT', '1')[1]
  if not entry then
    return found
  end
  if not is_pending(KEYS[1], entry[1]) then
    found[#found + 1] = entry[1]
  end
  for n = 2, #entry[2], 2 do
    bytes = bytes - #entry[2][n]
  end
  first, left = '(' .. entry[1], left - 1
end
found[1] = first
return found
