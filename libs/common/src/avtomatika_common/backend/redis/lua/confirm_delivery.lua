#!lua flags=allow-oom
--@include tasks
--[[
  The worker has the task: its one timer is now the result deadline, counted from the hand-out.

  KEYS  task
  ARGV  p, task id, worker, offer number or '' (whichever)
  Returns  1; 0 it is not leased to this worker
]]
local p, task_id = ARGV[1], ARGV[2]
local t = read_task(p, task_id)
if not t or t.state ~= 'leased' or t.worker ~= ARGV[3] or (ARGV[4] ~= '' and t.offer ~= ARGV[4]) then
  return 0
end
if redis.call('ZREM', p .. 'tm', 'c/' .. t.job .. '/' .. task_id) == 1 then
  set_timer(p, 'r', t.job, task_id, tonumber(t.leased_at) + tonumber(t.result_ms))
end
return 1
