#!lua flags=allow-oom
--@include tasks
--[[
  The first decision on an open approval.

  KEYS  job
  ARGV  p, job id, token of the wait, event, nonce of this call
  Returns  'OK'; 'NONE' no such job; 'CLOSED' the job does not wait for this approval (any more)
]]
local stored = redis.call('HMGET', KEYS[1], 'wait', 'group', 'cancel', 'decided')
if not stored[1] then
  return 'NONE'
end
if stored[4] == ARGV[5] then
  return 'OK'
end
if stored[1] ~= ARGV[3] or stored[1] == '' or stored[3] == '1' then
  return 'CLOSED'
end
redis.call('HSET', KEYS[1], 'wait', '', 'decided', ARGV[5])
clear_timer(ARGV[1], 'w', ARGV[2], ARGV[3])
append_event(ARGV[1], stored[2], ARGV[2], ARGV[4])
return 'OK'
