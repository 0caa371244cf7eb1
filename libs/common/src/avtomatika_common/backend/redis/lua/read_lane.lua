#!lua flags=no-writes
--[[
  Whose events a lane has, from an entry on.

  KEYS  lane
  ARGV  first id, last id, how many at most
  Returns  {next first id, '0' no more; job, ...}
]]
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local found = {'0'}
for _, entry in ipairs(entries) do
  local fields = entry[2]
  for n = 1, #fields, 2 do
    if fields[n] == 'j' then
      found[#found + 1] = fields[n + 1]
    end
  end
end
if #entries == tonumber(ARGV[3]) then
  found[1] = '(' .. entries[#entries][1]
end
return found
