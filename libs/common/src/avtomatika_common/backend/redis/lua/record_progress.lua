#!lua flags=allow-oom
--@include tasks
--@include judge
--[[
  Judge what a worker says of its progress; where it counts, readers see it, the checkpoint is kept,
  the hand-out is confirmed (the worker has the task) and the heartbeat timeout runs anew.

  KEYS  job
  ARGV  p, job id, task id, worker, Progress, checkpoint or '' (the last one stays), how many are kept
  Returns  a `ResultAnswer`
]]
local p, job_id, task_id, log = ARGV[1], ARGV[2], ARGV[3], KEYS[1] .. ':prog'
local judged = judge(p, job_id, task_id, ARGV[4])
if judged.answer then
  return judged.answer
end
if redis.call('LINDEX', log, -1) ~= ARGV[5] then  -- else this call is a repeat
  redis.call('RPUSH', log, ARGV[5])
  redis.call('LTRIM', log, -tonumber(ARGV[7]), -1)
end
confirm(p, task_id, judged.task)
if ARGV[6] ~= '' then
  redis.call('HSET', p .. 't:' .. task_id, 'checkpoint', ARGV[6])
end
if judged.task.beat_ms then
  set_timer(p, 'r', job_id, task_id, late_at(judged.task, now_ms()))
end
return 'ok'
