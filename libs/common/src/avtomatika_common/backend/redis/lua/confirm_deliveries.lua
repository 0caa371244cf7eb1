#!lua flags=allow-oom
--@include tasks
--[[
  Workers have their tasks: the one timer of each is now its result deadline, counted from the hand-out,
  or that of its heartbeat.

  KEYS  tasks
  ARGV  p, then for each task three: id, worker, offer number or '' (whichever)
  Returns  for each 1; 0 it is not leased to this worker
]]
local p, answers = ARGV[1], {}
for n = 1, #KEYS do
  local task_id, worker, offer = ARGV[3 * n - 1], ARGV[3 * n], ARGV[3 * n + 1]
  local t = read_task(p, task_id)
  if not t or t.state ~= 'leased' or t.worker ~= worker or (offer ~= '' and t.offer ~= offer) then
    answers[n] = 0
  else
    confirm(p, task_id, t)
    answers[n] = 1
  end
end
return answers
