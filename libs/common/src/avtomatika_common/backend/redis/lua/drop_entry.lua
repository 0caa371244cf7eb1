#!lua flags=allow-oom
--@include claims
--[[
  Answer an entry that changes nothing, unless it carries a running job.

  KEYS  job
  ARGV  inbox stream, consumer, entry
  Returns  'DROPPED'; 'LOST' not pending for the consumer; 'CARRIES' it is a running job's claim
]]
if not is_mine(ARGV[1], ARGV[2], ARGV[3]) then
  return 'LOST'
end
local stored = redis.call('HMGET', KEYS[1], 'status', 'claim', 'cancel')
if stored[1] == 'running' and stored[2] == ARGV[3] and stored[3] ~= '1' then
  return 'CARRIES'
end
answer(ARGV[1], ARGV[3])
return 'DROPPED'
