#!lua flags=allow-oom
--@include workers
--[[
  The worker signs off; its tasks go back to the board uncounted.

  KEYS  exp
  ARGV  w, worker
  Returns  1; 0 it was not registered
]]
local w, worker = ARGV[1], ARGV[2]
local was_live = is_live(w, worker, now_ms())
if redis.call('EXISTS', w .. 'w:' .. worker) == 1 then
  end_registration(w, worker, not was_live)
end
return was_live and 1 or 0
