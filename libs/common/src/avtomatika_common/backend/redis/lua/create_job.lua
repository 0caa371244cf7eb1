#!lua
--[[
  Store a new job with its first event: all or nothing. Refused when Redis is full, or too many new jobs
  of the group wait.

  KEYS  job
  ARGV  p, job id, fence, origin, head, group, owner, event, fact or '',
        idempotency key or '', its fingerprint, its lifetime (s), data, most new jobs that may wait
  Returns  {'OK'|'AGAIN'|'REUSED'|'FULL', job id}
]]
local job, p, job_id = KEYS[1], ARGV[1], ARGV[2]
local owner, idempotency = ARGV[7], ARGV[10]

if idempotency ~= '' then
  local first = redis.call('HMGET', idempotency, 'job', 'fingerprint')
  if first[1] then
    return {first[2] == ARGV[11] and 'AGAIN' or 'REUSED', first[1]}
  end
end
if redis.call('EXISTS', job) == 1 then
  return {'AGAIN', job_id}
end

local lane, most = p .. 'new:' .. ARGV[6], tonumber(ARGV[14])
local waiting = redis.call('XLEN', lane)
if waiting >= most then  -- those that were begun do not wait
  local begun = redis.pcall('XPENDING', lane, 'g')
  if waiting - (begun.err and 0 or begun[1]) >= most then
    return {'FULL', ''}
  end
end

redis.call('HSET', job, 'fence', ARGV[3], 'input', ARGV[4], 'head', ARGV[5], 'data', ARGV[13],
  'run', '0', 'tries', '0', 'claim', '', 'wait', '', 'cancel', '', 'status', 'pending',
  'group', ARGV[6], 'owner', owner)
local entry = redis.call('XADD', lane, '*', 'j', job_id, 'e', ARGV[8])
redis.call('HSET', job, 'claim', entry)
redis.call('SADD', p .. 'live', job_id)
redis.call('HINCRBY', p .. 'count', 'pending', 1)
if owner ~= '' then
  redis.call('HINCRBY', p .. 'count', 'pending|' .. owner, 1)
end
if ARGV[9] ~= '' then
  redis.call('XADD', p .. 'facts', '*', 'd', ARGV[9])
end
if idempotency ~= '' then
  redis.call('HSET', idempotency, 'job', job_id, 'fingerprint', ARGV[11])
  redis.call('EXPIRE', idempotency, ARGV[12])
end
return {'OK', job_id}
