#!lua flags=no-writes
--@include lanes
--[[
  Entries of a lane that were delivered, and are neither pending nor answered: nobody would ever get
  them. Only a hand can do that, to the group or its consumers.

  KEYS  lane
  ARGV  first id, how many at most
  Returns  {next first id, '0' no more; id, ...}
]]
local last, found = last_delivered(KEYS[1]), {'0'}
if last then
  found[1] = walk_lane(KEYS[1], ARGV[1], last, ARGV[2], function(entry)
    if not is_pending(KEYS[1], entry) then
      found[#found + 1] = entry
    end
  end)
end
return found
