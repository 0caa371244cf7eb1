#!lua flags=allow-oom
--@include workers
--[[
  What became of promised tasks, in order: 'keep_hold' the worker has leased it, 'end_hold' its place
  is free again, 'unmatched' also the task can be matched anew, 'stop' also tell it to stop the task.
  A change about an earlier offer than the one now promised changes no hold. What a partition sent
  counts once, however many relays bring it and however late.

  KEYS  exp
  ARGV  w, partition it comes from or '', then sixes: kind, worker, task,
        offer number ('' = whichever), job, id of the entry in the partition's `out` or ''
  Returns  how many places became free
]]
local w, partition, now = ARGV[1], ARGV[2], now_ms()
local changed, freed = {}, 0
local relayed = partition ~= '' and redis.call('GET', w .. 'relayed:' .. partition) or '0-0'

local function is_behind(entry, other)
  local ms, number = string.match(entry, '^(%d+)%-(%d+)$')
  local other_ms, other_number = string.match(other, '^(%d+)%-(%d+)$')
  return tonumber(ms) > tonumber(other_ms)
    or ms == other_ms and tonumber(number) > tonumber(other_number)
end

local function apply(kind, worker, task, offer, job)
  local hold, offers, cancel = w .. 'hold:' .. worker, w .. 'offer:' .. worker, w .. 'cancel:' .. worker
  local promised = redis.call('HGET', offers, task)
  local is_current = promised and (offer == '' or tonumber(promised) <= tonumber(offer))
  if kind == 'keep_hold' then
    -- Also when the promise has run out meanwhile: the worker does hold the task.
    if (is_current or not promised) and is_registered(w, worker) then
      redis.call('ZADD', hold, '+inf', task)
      redis.call('HSET', offers, task, offer)
    end
  else
    if (is_current or not promised) and redis.call('ZREM', hold, task) == 1 then
      redis.call('HDEL', offers, task)
      changed[worker], freed = true, freed + 1
    end
    if kind == 'unmatched' then
      redis.call('XADD', w .. 'hint', 'MAXLEN', '~', '1000', '*', 'k', 'unmatched',
        'v', offer .. ':' .. task)
    end
    if kind ~= 'stop' then
      redis.call('ZREM', cancel, task)
    elseif is_registered(w, worker) then
      stop_task(w, worker, task, job, now)
    end
  end
end

for n = 3, #ARGV, 6 do
  local entry = ARGV[n + 5]
  if entry == '' or is_behind(entry, relayed) then
    apply(ARGV[n], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3], ARGV[n + 4])
    relayed = entry
  end
end
hint_places(w, changed, now)
if partition ~= '' then
  redis.call('SET', w .. 'relayed:' .. partition, relayed)
end
return freed
