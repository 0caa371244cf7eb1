#!lua flags=allow-oom
--@include tasks
--[[
  Judge a worker's result; where it counts, close the task and append the event.

  KEYS  job
  ARGV  p, job id, task id, worker, event
  Returns  a `ResultAnswer`
]]
local job, p, task_id, worker = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
local stored = redis.call('HMGET', job, 'status', 'cancel', 'group')
if not stored[1] then
  return 'job_not_found'
end
local closed = redis.call('HGET', job .. ':done', task_id)
if closed == 'result|' .. worker then
  return 'ok'
end

-- The worker is done with a task nobody waits for: it need not be told to stop it any more.
local function ignored(answer)
  redis.call('XADD', p .. 'out', '*', 'k', 'end_hold', 'w', worker, 't', task_id)
  return answer
end

local status = stored[1]
if stored[2] == '1' or status == 'cancelled' then
  return ignored('job_cancelled')
end
if status == 'finished' or status == 'failed' or status == 'quarantined' then
  return ignored('job_already_terminated')
end
if closed == 'deadline|' then
  return ignored('deadline_exceeded')
end
local t = read_task(p, task_id)
if not t or t.job ~= ARGV[2] then
  return ignored('stale_task')
end
if t.state ~= 'leased' or t.worker ~= worker then
  return 'worker_mismatch'
end
close_task(p, task_id, t, 'result|' .. worker, false)
append_event(p, stored[3], t.job, ARGV[5], t.branch, t.leased_at)
return 'ok'
