#!lua flags=allow-oom
--[[
  Note that a signal uses this key, where a request that makes a job would look for it.

  KEYS  idempotency key
  ARGV  job id, fingerprint of the request, how long to know it (s)
  Returns  'OK'; 'REUSED' it was used for another request
]]
local first = redis.call('HGET', KEYS[1], 'fingerprint')
if first then
  return first == ARGV[2] and 'OK' or 'REUSED'
end
redis.call('HSET', KEYS[1], 'job', ARGV[1], 'fingerprint', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 'OK'
