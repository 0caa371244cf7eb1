#!lua flags=allow-oom
--@include workers
--[[
  End registrations whose time is over; their tasks are lost.

  KEYS  exp
  ARGV  w, at most so many
  Returns  how many
]]
local over = redis.call('ZRANGE', KEYS[1], '-inf', now_ms(), 'BYSCORE', 'LIMIT', '0', ARGV[2])
for _, worker in ipairs(over) do
  end_registration(ARGV[1], worker, true)
end
return #over
