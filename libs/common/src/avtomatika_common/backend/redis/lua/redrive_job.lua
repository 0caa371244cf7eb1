#!lua
--@include tasks
--@include reopen
--[[
  Let a job that has ended run again, carried by a new entry. Refused when Redis is full.

  KEYS  job
  ARGV  p, job id, fence as read, new fence, status, run, head, event, deadline (ms) or '', fact or ''
  Returns  'OK', also when this very call is done; 'NONE' no such job; 'STALE' the job was changed by
           somebody else
]]
local job, p, job_id = KEYS[1], ARGV[1], ARGV[2]
local stored = redis.call('HMGET', job, 'fence', 'status', 'group', 'owner')
if not stored[1] then
  return 'NONE'
end
if stored[1] == ARGV[4] then
  return 'OK'
end
if stored[1] ~= ARGV[3] then
  return 'STALE'
end
local claim = append_event(p, stored[3], job_id, ARGV[8])
redis.call('HSET', job, 'fence', ARGV[4], 'status', ARGV[5], 'run', ARGV[6], 'head', ARGV[7],
  'claim', claim, 'tries', '0', 'wait', '', 'cancel', '')
if ARGV[9] ~= '' then
  redis.call('HSET', job, 'deadline', ARGV[9])
end
reopen_job(p, job_id, stored[4], stored[2], ARGV[5], ARGV[9])
if ARGV[10] ~= '' then
  redis.call('XADD', p .. 'facts', '*', 'd', ARGV[10])
end
return 'OK'
