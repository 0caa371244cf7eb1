#!lua flags=no-writes
--[[
  Which of the tasks a worker is said to have it has in one partition.

  KEYS  out
  ARGV  p, worker, then the tasks
  Returns  {when the oldest change that has not reached the workers came (ms) or '', its tasks ...}
]]
local p, worker = ARGV[1], ARGV[2]
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', '1')[1]
local found = {first and string.match(first[1], '^%d+') or ''}
for n = 3, #ARGV do
  if redis.call('HGET', p .. 't:' .. ARGV[n], 'worker') == worker then
    found[#found + 1] = ARGV[n]
  end
end
return found
