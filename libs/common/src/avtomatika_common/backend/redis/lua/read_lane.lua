#!lua flags=no-writes
--@include lanes
--[[
  Whose events a lane has, from an entry on: fewer where entries are large.

  KEYS  lane
  ARGV  first id, last id, how many at most
  Returns  {next first id, '0' no more; job, ...}
]]
local found = {'0'}
found[1] = walk_lane(KEYS[1], ARGV[1], ARGV[2], ARGV[3], function(_, fields)
  for n = 1, #fields, 2 do
    if fields[n] == 'j' then
      found[#found + 1] = fields[n + 1]
    end
  end
end)
return found
