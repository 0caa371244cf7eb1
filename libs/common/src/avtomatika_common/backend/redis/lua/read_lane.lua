#!lua flags=no-writes
--[[
  Whose events a lane has, from an entry on: fewer where entries are large.

  KEYS  lane
  ARGV  first id, last id, how many at most
  Returns  {next first id, '0' no more; job, ...}
]]
local first, left, bytes = ARGV[1], tonumber(ARGV[3]), 65536
local found = {'0'}
while left > 0 and bytes > 0 do
  local entry = redis.call('XRANGE', KEYS[1], first, ARGV[2], 'COUNT', '1')[1]
  if not entry then
    return found
  end
  local fields = entry[2]
  for n = 1, #fields, 2 do
    if fields[n] == 'j' then
      found[#found + 1] = fields[n + 1]
    end
    bytes = bytes - #fields[n + 1]
  end
  first, left = '(' .. entry[1], left - 1
end
found[1] = first
return found
