#!lua flags=no-writes
--[[
  Which of the tasks a worker is said to have it has in one partition.

  KEYS  tasks
  ARGV  worker, then the ids of the tasks
  Returns  those it has
]]
local found = {}
for n, key in ipairs(KEYS) do
  if redis.call('HGET', key, 'worker') == ARGV[1] then
    found[#found + 1] = ARGV[1 + n]
  end
end
return found
