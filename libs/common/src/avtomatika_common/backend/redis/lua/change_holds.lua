#!lua flags=allow-oom
--@include workers
--[[
  What became of promised tasks, in order: 'keep_hold' the worker has leased it, 'end_hold' its place
  is free again, 'unmatched' also the task can be matched anew, 'stop' also tell it to stop the task.
  A change about an earlier offer than the one now promised changes no hold.

  KEYS  exp
  ARGV  w, then fives: kind, worker, task, offer number ('' = whichever), job
]]
local w, now = ARGV[1], now_ms()
for n = 2, #ARGV, 5 do
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
      hint_places(w, worker, now)
    end
    if kind == 'unmatched' then
      redis.call('XADD', w .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', 'unmatched',
        'v', offer .. ':' .. task)
    end
    if kind ~= 'stop' then
      redis.call('ZREM', cancel, task)
    elseif is_live(w, worker, now) then
      stop_task(w, worker, task, ARGV[n + 4], now)
    end
  end
end
return 1
