#!lua flags=allow-oom
--@include tasks
--[[
  Set the cancel mark: the running handler's outcome is refused from now on, no task is handed out.

  KEYS  job
  ARGV  p, job id, nonce of this call (a repeat of it has no effect), event
  Returns  {'NONE'} no such job; {'TERMINAL', status}; {'OK', worker, task, ...}: tasks of it that
           are with a worker, of a large fan-out some
]]
local job, p = KEYS[1], ARGV[1]
local stored = redis.call('HMGET', job, 'status', 'cancel', 'group', 'wait', 'cancel_call', 'fence')
if not stored[1] then
  return {'NONE'}
end
if redis.call('SISMEMBER', p .. 'live', ARGV[2]) == 0 then
  return {'TERMINAL', stored[1]}
end
local held = {'OK'}
if stored[1] == 'waiting_for_worker' or stored[1] == 'waiting_for_parallel_tasks' then
  local open = redis.call('HRANDFIELD', job .. ':br', '511')
  if string.sub(stored[4], 1, 2) == 't:' then
    open[#open + 1] = string.sub(stored[4], 3)
  end
  for _, task_id in ipairs(open) do
    local t = redis.call('HMGET', p .. 't:' .. task_id, 'state', 'worker')
    if t[1] == 'leased' then
      held[#held + 1] = t[2]
      held[#held + 1] = task_id
    end
  end
end
if stored[2] ~= '1' and stored[5] ~= ARGV[3] then
  redis.call('HINCRBY', job, 'run', 1)
  local claim = append_event(p, stored[3], ARGV[2], ARGV[4])
  redis.call('HSET', job, 'cancel', '1', 'fence', fence_after(stored[6], ARGV[3]), 'claim', claim,
    'cancel_call', ARGV[3])
end
return held
