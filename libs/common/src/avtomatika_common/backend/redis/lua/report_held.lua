#!lua flags=allow-oom
--@include tasks
--@include held
--[[
  Some tasks a worker held just now, beside its report of those it has. Those it names are confirmed; of
  the others, those that were handed out before the report began go back to the board when the report
  before did not name them either.

  KEYS  tasks
  ARGV  p, worker, begin of the report (ms), its name, how many of the tasks it names: the first of them,
        then the ids of the tasks
  Returns  how many went back
]]
local p, worker, began, report, named = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local returned = 0
for n, key in ipairs(KEYS) do
  local task_id = ARGV[5 + n]
  local t = read_task(p, task_id)
  if t and t.state == 'leased' and t.worker == worker then
    if n <= named then
      confirm(p, task_id, t)
    elseif tonumber(t.leased_at) < began then
      local missed = redis.call('HGET', key, 'missed')
      if not missed then
        redis.call('HSET', key, 'missed', report)
      elseif missed ~= report then
        take_back(p, task_id, t)
        returned = returned + 1
      end
    end
  end
end
return returned
