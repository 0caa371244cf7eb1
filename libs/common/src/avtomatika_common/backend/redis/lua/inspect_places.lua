#!lua flags=no-writes
--[[
  What a worker holds in one partition, beside what it is said to hold.

  KEYS  tasks held by the worker
  ARGV  p, worker, then tasks it has places for
  Returns  {now (ms), when the oldest change that has not reached the workers came (ms) or '',
            how many of the tasks are leased to it, those, then tasks it holds that are no more}
]]
local p, worker = ARGV[1], ARGV[2]
local t = redis.call('TIME')
local first = redis.call('XRANGE', p .. 'out', '-', '+', 'COUNT', '1')[1]
local found = {tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000),
  first and string.match(first[1], '^%d+') or '', 0}
for n = 3, #ARGV do
  if redis.call('HGET', p .. 't:' .. ARGV[n], 'worker') == worker then
    found[#found + 1] = ARGV[n]
    found[3] = found[3] + 1
  end
end
for n, task_id in ipairs(redis.call('HKEYS', KEYS[1])) do
  if n > 512 then
    break
  end
  if redis.call('EXISTS', p .. 't:' .. task_id) == 0 then
    found[#found + 1] = task_id
  end
end
return found
