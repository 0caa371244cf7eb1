#!lua flags=allow-oom
--@include tasks
--@include held
--[[
  End the leases of registrations that are over: lost ones count as failed attempts, others go back to
  the board. For a minute no lease of such a registration is given any more.

  KEYS  tasks held by the worker
  ARGV  p, worker, incarnation up to which, message of the failure or '' (back to the board),
        cursor, about how many
  Returns  {next cursor, how many}
]]
local p, worker, last, message = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local mark = redis.call('GET', p .. 'gone:' .. worker)
redis.call('SET', p .. 'gone:' .. worker, math.max(last, tonumber(mark or 0)), 'PX', '60000')

local function fail(task_id, t)
  local group = redis.call('HGET', p .. 'j:' .. t.job, 'group')
  close_task(p, task_id, t, 'lost|', true)
  if group then
    append_event(p, group, t.job, cmsgpack.pack({event = 'task_failed', at = now_ms() / 1000,
      task_id = task_id, worker_id = worker, fresh_id = '', message = message}), t.branch, t.leased_at,
      t.checkpoint)
  end
end

local returned = 0
local cut = redis.call('HSCAN', KEYS[1], ARGV[5], 'COUNT', ARGV[6])
local held = cut[2]
for n = 1, #held, 2 do
  if tonumber(string.match(held[n + 1], '^%d+')) <= last then
    local task_id, t = held[n], read_task(p, held[n])
    returned = returned + 1
    if not t or t.state ~= 'leased' or t.worker ~= worker then
      redis.call('HDEL', KEYS[1], task_id)
    elseif message ~= '' then
      fail(task_id, t)
    else
      take_back(p, task_id, t)
    end
  end
end
return {cut[1], returned}
