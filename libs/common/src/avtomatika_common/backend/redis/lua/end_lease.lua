#!lua flags=allow-oom
--@include tasks
--@include judge
--[[
  Judge a worker's result; where it counts, close the task and append the event.

  KEYS  job
  ARGV  p, job id, task id, worker, event
  Returns  a `ResultAnswer`
]]
local p, task_id, worker = ARGV[1], ARGV[3], ARGV[4]
local judged = judge(p, ARGV[2], task_id, worker)
if judged.closed == 'result|' .. worker then
  return 'ok'
end
if judged.answer then
  if judged.answer ~= 'job_not_found' and judged.answer ~= 'worker_mismatch' then
    -- The worker is done with a task nobody waits for: it need not be told to stop it any more.
    redis.call('XADD', p .. 'out', '*', 'k', 'end_hold', 'w', worker, 't', task_id)
  end
  return judged.answer
end
local t = judged.task
close_task(p, task_id, t, 'result|' .. worker, false)
append_event(p, judged.group, t.job, ARGV[5], t.branch, t.leased_at, t.checkpoint)
return 'ok'
