#!lua flags=allow-oom
--@include apart
--[[
  A signal for a job, numbered behind its earlier ones: an event in its inbox.

  KEYS  job
  ARGV  p, job id, event, nonce of this call (a repeat of it has no effect), most signals that wait,
        how many nonces are known, idempotency key or '', its fingerprint, its lifetime (s)
  Returns  'OK'; 'NONE' no such job; 'REUSED' the key was used for another request; 'FULL' too many
           signals wait; the status of a job that has ended
]]
local job, p, job_id, nonce, idempotency = KEYS[1], ARGV[1], ARGV[2], ARGV[4], ARGV[7]
if idempotency ~= '' then
  local first = redis.call('HMGET', idempotency, 'job', 'fingerprint')
  if first[1] then
    return first[2] == ARGV[8] and 'OK' or 'REUSED'
  end
end
local calls = job .. ':sig'
if redis.call('ZSCORE', calls, nonce) then
  return 'OK'
end
local stored = redis.call('HMGET', job, 'status', 'group', 'sig_sent', 'sig_taken', 'claim')
if not stored[1] then
  return 'NONE'
end
if redis.call('SISMEMBER', p .. 'live', job_id) == 0 then
  return stored[1]
end
local sent = tonumber(stored[3] or 0)
if sent - tonumber(stored[4] or 0) >= tonumber(ARGV[5]) then
  return 'FULL'
end
local number = sent + 1
redis.call('HSET', job, 'sig_sent', number)
redis.call('ZADD', calls, number, nonce)
redis.call('ZREMRANGEBYRANK', calls, 0, -tonumber(ARGV[6]) - 1)
add_apart(p .. 'in:' .. stored[2], stored[5], 'j', job_id, 'e', ARGV[3], 'n', number)
if idempotency ~= '' then
  redis.call('HSET', idempotency, 'job', job_id, 'fingerprint', ARGV[8])
  redis.call('EXPIRE', idempotency, ARGV[9])
end
return 'OK'
