#!lua flags=allow-oom
--@include workers
--[[
  Promise a task to a worker: takes its latest open poll and a free place, and tells the gateway.

  KEYS  exp
  ARGV  w, worker, task, job, offer number, task type, how long the promise holds (ms)
  Returns  'MATCHED' (also when this offer is promised to it already), 'GONE', 'NO_CREDIT', 'FULL'
]]
local w, worker, task, offer = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local key, hold, offers = w .. 'w:' .. worker, w .. 'hold:' .. worker, w .. 'offer:' .. worker
local now = now_ms()
local stored = redis.call('HMGET', key, 'inc', 'max', 'draining')
if not stored[1] or stored[3] == '1' or not is_live(w, worker, now) then
  return 'GONE'
end
forget_old_holds(w, worker, now)
local promised = redis.call('HGET', offers, task)
if promised and tonumber(promised) >= tonumber(offer) then
  return 'MATCHED'
end
local credit = credits(w, worker, now, {})[1]
if not credit then
  return 'NO_CREDIT'
end
local held = redis.call('ZCARD', hold) - (promised and 1 or 0)
if stored[2] ~= '' and held >= tonumber(stored[2]) then
  return 'FULL'
end

redis.call('ZREM', w .. 'cred:' .. worker, credit.member)
redis.call('ZADD', hold, now + tonumber(ARGV[7]), task)
redis.call('HSET', offers, task, offer)
redis.call('HSET', key, 't:' .. ARGV[6], now)
local mail = w .. 'mail:' .. credit.gateway
redis.call('XADD', mail, 'MAXLEN', '~', '10000', '*', 'p', credit.poll, 'w', worker,
  'i', stored[1], 't', task, 'j', ARGV[4], 'o', offer)
redis.call('PEXPIRE', mail, '60000')
return 'MATCHED'
