#!lua flags=allow-oom
--@include workers
--[[
  What became of promised tasks, in order: 'keep_hold' the worker has leased it, 'end_hold' its place
  is free again, 'stop' also tell it to stop the task. A change about an earlier offer than the one
  now promised changes no hold.

  KEYS  exp
  ARGV  w, then fours: kind, worker, task, offer number ('' = whichever)
]]
local w, now = ARGV[1], now_ms()
for n = 2, #ARGV, 4 do
  local kind, worker, task, offer = ARGV[n], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3]
  local hold, offers, cancel = w .. 'hold:' .. worker, w .. 'offer:' .. worker, w .. 'cancel:' .. worker
  local promised = redis.call('HGET', offers, task)
  local is_current = promised and (offer == '' or tonumber(promised) <= tonumber(offer))
  if kind == 'keep_hold' then
    -- Also when the promise has run out meanwhile: the worker does hold the task.
    if (is_current or not promised) and is_live(w, worker, now) then
      redis.call('ZADD', hold, '+inf', task)
      redis.call('HSET', offers, task, offer)
    end
  else
    if is_current then
      redis.call('ZREM', hold, task)
      redis.call('HDEL', offers, task)
      hint(w, worker)
    end
    if kind == 'end_hold' then
      redis.call('ZREM', cancel, task)
    elseif is_live(w, worker, now) then
      redis.call('ZADD', cancel, now, task)
      redis.call('ZREMRANGEBYRANK', cancel, '0', '-1001')
    end
  end
end
return 1
