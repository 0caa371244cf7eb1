#!lua
--[[
  Store a new job with its first event: all or nothing. Refused when Redis is full, or too many new jobs
  of the group wait.

  KEYS  job
  ARGV  p, job id, fence, origin, head, group, owner, event, fact or '',
        idempotency key or '' (known as long as the job), its fingerprint,
        how long to know the id where it makes one job only (s), data, '1' (it does) or '',
        deadline (ms) or '',
        most new jobs that may wait
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
local made = p .. 'made:' .. job_id
if redis.call('EXISTS', job) == 1 or (ARGV[14] ~= '' and redis.call('EXISTS', made) == 1) then
  return {'AGAIN', job_id}
end

local lane, most = p .. 'new:' .. ARGV[6], tonumber(ARGV[16])
local waiting = redis.call('XLEN', lane)
if waiting >= most then  -- those that were begun do not wait
  local begun = redis.pcall('XPENDING', lane, 'g')
  if waiting - (begun.err and 0 or begun[1]) >= most then
    return {'FULL', ''}
  end
end

local entry = redis.call('XADD', lane, '*', 'j', job_id, 'e', ARGV[8])
redis.call('HSET', job, 'fence', ARGV[3], 'input', ARGV[4], 'head', ARGV[5], 'data', ARGV[13],
  'run', '0', 'tries', '0', 'claim', entry, 'wait', '', 'cancel', '', 'status', 'pending',
  'group', ARGV[6], 'owner', owner)
redis.call('SADD', p .. 'live', job_id)
redis.call('HINCRBY', p .. 'count', 'pending', 1)
if owner ~= '' then
  redis.call('HINCRBY', p .. 'count', 'pending|' .. owner, 1)
end
if ARGV[9] ~= '' then
  redis.call('XADD', p .. 'facts', '*', 'd', ARGV[9])
end
if ARGV[14] ~= '' then
  redis.call('SET', made, '1', 'EX', ARGV[12])
end
if ARGV[15] ~= '' then
  redis.call('HSET', job, 'deadline', ARGV[15])
  local timer = 'j/' .. job_id .. '/'
  redis.call('ZADD', p .. 'tm', ARGV[15], timer)
  if redis.call('ZRANGE', p .. 'tm', '0', '0')[1] == timer then
    redis.call('XADD', p .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', 'timer', 'v', ARGV[15])
  end
end
if idempotency ~= '' then
  redis.call('HSET', idempotency, 'job', job_id, 'fingerprint', ARGV[11])
  redis.call('HSET', job, 'idempotency', idempotency)
end
return {'OK', job_id}
