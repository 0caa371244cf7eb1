#!lua flags=allow-oom
--[[
  The poll is over.

  KEYS  open polls of the worker
  ARGV  poll
]]
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '0', '511')) do
  if string.match(member, '^[^|]*') == ARGV[1] then
    redis.call('ZREM', KEYS[1], member)
  end
end
return 1
