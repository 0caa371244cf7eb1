#!lua flags=allow-oom
--@include tasks
--@include judge
--[[
  Judge workers' results; where one counts, close the task and append the event.

  KEYS  jobs
  ARGV  p, then for each result four: job id, task id, worker, event
  Returns  for each a `ResultAnswer`
]]
local p = ARGV[1]

local function end_lease(job_id, task_id, worker, event)
  local judged = judge(p, job_id, task_id, worker)
  if judged.closed == 'result|' .. worker then
    return 'ok'
  end
  if judged.answer then
    local t = read_task(p, task_id)
    if t and t.job == job_id and t.state == 'leased' and t.worker == worker then
      -- The worker is done with it: it need not be told to stop it any more.
      close_task(p, task_id, t, 'closed|', false)
    elseif judged.answer ~= 'job_not_found' and judged.answer ~= 'worker_mismatch' then
      redis.call('XADD', p .. 'out', '*', 'k', 'end_hold', 'w', worker, 't', task_id)
    end
    return judged.answer
  end
  local t = judged.task
  close_task(p, task_id, t, 'result|' .. worker, false)
  append_event(p, judged.group, t.job, event, t.branch, t.leased_at, t.checkpoint)
  return 'ok'
end

local answers = {}
for n = 1, #KEYS do
  local i = 4 * n - 2
  answers[n] = end_lease(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
end
return answers
