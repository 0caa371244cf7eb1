#!lua flags=allow-oom
--@include claims
--[[
  Hand an entry to another lane or group; the claim of a running job follows it.

  KEYS  job
  ARGV  inbox stream, consumer, entry, target stream, the job's group from now on
  Returns  1 done, 0 not pending for the consumer
]]
if not is_mine(ARGV[1], ARGV[2], ARGV[3]) then
  return 0
end
local read = redis.call('XRANGE', ARGV[1], ARGV[3], ARGV[3])
if #read > 0 then
  local moved = redis.call('XADD', ARGV[4], '*', unpack(read[1][2]))
  if follow(KEYS[1], ARGV[3], moved) then
    redis.call('HSET', KEYS[1], 'group', ARGV[5])
  end
end
answer(ARGV[1], ARGV[3])
return 1
