#!lua flags=allow-oom
--@include tasks
--@include judge
--[[
  Judge what a worker says of its progress; where it counts, readers see it, the checkpoint is kept and
  the hand-out is confirmed: the worker has the task.

  KEYS  job
  ARGV  p, job id, task id, worker, Progress, checkpoint or '' (the last one stays), how many are kept
  Returns  a `ResultAnswer`
]]
local task_id, log = ARGV[3], KEYS[1] .. ':prog'
local judged = judge(ARGV[1], ARGV[2], task_id, ARGV[4])
if judged.answer then
  return judged.answer
end
if redis.call('LINDEX', log, -1) ~= ARGV[5] then  -- else this call is a repeat
  redis.call('RPUSH', log, ARGV[5])
  redis.call('LTRIM', log, -tonumber(ARGV[7]), -1)
end
confirm(ARGV[1], task_id, judged.task)
if ARGV[6] ~= '' then
  redis.call('HSET', ARGV[1] .. 't:' .. task_id, 'checkpoint', ARGV[6])
end
return 'ok'
