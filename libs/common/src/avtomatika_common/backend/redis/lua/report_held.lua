#!lua flags=allow-oom
--@include tasks
--@include held
--[[
  Which tasks a worker says it has. Those it names are confirmed; of the others, those that were handed
  out before the report began go back to the board when the report before did not name them either.

  KEYS  tasks held by the worker
  ARGV  p, worker, begin of the report (ms), its name, cursor, about how many, then the tasks it names
  Returns  {next cursor, how many went back}
]]
local p, worker, began, report = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local named, returned = {}, 0
for n = 7, #ARGV do
  named[ARGV[n]] = true
end
local cut = redis.call('HSCAN', KEYS[1], ARGV[5], 'COUNT', ARGV[6])
for n = 1, #cut[2], 2 do
  local task_id = cut[2][n]
  local t = read_task(p, task_id)
  if t and t.state == 'leased' and t.worker == worker then
    local key = p .. 't:' .. task_id
    if named[task_id] then
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
return {cut[1], returned}
