#!lua flags=allow-oom
--@include workers
--[[
  Tell a worker to stop a task.

  KEYS  exp
  ARGV  w, worker, task, job
  Returns  1 the command goes to its socket, 0 it learns of it by heartbeat
]]
local now = now_ms()
if not is_live(ARGV[1], ARGV[2], now) then
  return 0
end
return stop_task(ARGV[1], ARGV[2], ARGV[3], ARGV[4], now)
