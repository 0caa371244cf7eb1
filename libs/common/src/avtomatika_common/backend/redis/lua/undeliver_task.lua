#!lua flags=allow-oom
--@include tasks
--@include held
--[[
  The worker did not get the task: back to its place on the board, as the next offer.

  KEYS  task
  ARGV  p, task id, worker, offer number or '' (whichever)
  Returns  1; 0 it is not leased so, or was confirmed
]]
local p, task_id, worker = ARGV[1], ARGV[2], ARGV[3]
local t = read_task(p, task_id)
if not t or t.state ~= 'leased' or t.worker ~= worker or (ARGV[4] ~= '' and t.offer ~= ARGV[4])
  or not redis.call('ZSCORE', p .. 'tm', 'c/' .. t.job .. '/' .. task_id) then
  return 0
end
take_back(p, task_id, t)
return 1
