#!lua flags=allow-oom
--@include claims
--[[
  Move an entry that cannot be handled to the dead events.

  KEYS  job
  ARGV  p, inbox stream, consumer, entry, reason
  Returns  1 done, 0 not pending for the consumer
]]
if not is_mine(ARGV[2], ARGV[3], ARGV[4]) then
  return 0
end
local read = redis.call('XRANGE', ARGV[2], ARGV[4], ARGV[4])
if #read > 0 then
  local entry = {'stream', ARGV[2], 'reason', ARGV[5], unpack(read[1][2])}
  redis.call('XADD', ARGV[1] .. 'dead', '*', unpack(entry))
end
answer(ARGV[2], ARGV[4])
return 1
