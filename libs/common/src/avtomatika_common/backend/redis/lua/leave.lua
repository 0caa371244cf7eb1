#!lua flags=allow-oom
--@include workers
--[[
  The worker signs off; its tasks go back to the board uncounted.

  KEYS  exp
  ARGV  w, worker
  Returns  1; 0 it was not registered
]]
local w, worker = ARGV[1], ARGV[2]
local was_registered = is_registered(w, worker)
if redis.call('EXISTS', w .. 'w:' .. worker) == 1 then
  end_registration(w, worker, not was_registered)
end
return was_registered and 1 or 0
