#!lua flags=allow-oom
--@include claims
--@include dead
--[[
  Move an entry that cannot be handled to the dead events.

  KEYS  job
  ARGV  p, inbox stream, consumer, entry, reason
  Returns  1 done, 0 not pending for the consumer
]]
if not is_mine(ARGV[2], ARGV[3], ARGV[4]) then
  return 0
end
set_aside(ARGV[1], ARGV[2], ARGV[4], ARGV[5], {})
return 1
