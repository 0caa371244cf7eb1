#!lua flags=allow-oom
--@include workers
--[[
  The poll is over.

  KEYS  open polls of the worker
  ARGV  w, worker, poll
]]
local w, worker = ARGV[1], ARGV[2]
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '0', '511')) do
  if string.match(member, '^[^|]*') == ARGV[3] then
    redis.call('ZREM', KEYS[1], member)
    hint_places(w, {[worker] = true}, now_ms())
  end
end
return 1
