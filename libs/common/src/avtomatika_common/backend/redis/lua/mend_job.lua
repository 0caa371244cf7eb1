#!lua flags=allow-oom
--@include tasks
--@include marks
--[[
  Make good for one thing that is missing beside a job, if it is still as it was seen.

  KEYS  job
  ARGV  p, job id, its mark, what (see below) and what that takes
  Returns  1 done, 0 it has changed
]]
local job, p, job_id = KEYS[1], ARGV[1], ARGV[2]
if mark_of(job) ~= ARGV[3] then
  return 0
end
local group = redis.call('HGET', job, 'group')

local mends = {
  -- event, '1' of a branch, '1' it is the new claim
  event = function()
    local entry = append_event(p, group, job_id, ARGV[5], ARGV[6])
    if ARGV[7] == '1' then
      redis.call('HSET', job, 'claim', entry)
    end
  end,
  -- token, due (ms)
  timer = function()
    set_timer(p, 'w', job_id, ARGV[5], ARGV[6])
  end,
  deadline = function()
    set_timer(p, 'j', job_id, '', redis.call('HGET', job, 'deadline'))
  end,
  -- task
  task_timer = function()
    local t = read_task(p, ARGV[5])
    if t and t.state == 'board' and t.dispatch_due ~= '' then
      set_timer(p, 'd', job_id, ARGV[5], t.dispatch_due)
    elseif t and t.state == 'leased' then
      set_timer(p, 'r', job_id, ARGV[5], late_at(t, now_ms()))
    end
  end,
  -- task
  board = function()
    local t = read_task(p, ARGV[5])
    if t and t.state == 'board' then
      redis.call('ZADD', p .. 'board:' .. t.shape, -tonumber(t.prio), t.member)
      redis.call('HSET', p .. 'shapes', t.shape, t.meta)
      hint_task(p, cmsgpack.unpack(t.meta)['type'], t.meta, t.member, job_id, t.offer, t.prio)
    end
  end,
  -- task
  lease = function()
    local t = read_task(p, ARGV[5])
    if t and t.state == 'leased' then
      redis.call('HSET', p .. 'held:' .. t.worker, ARGV[5], t.inc .. ':' .. job_id)
    end
  end,
  -- token
  approval = function()
    redis.call('HSET', job, 'wait', ARGV[5])
  end,
  -- event for when no branch is open
  branches = function()
    local open = redis.call('HLEN', job .. ':br')
    redis.call('HSET', job, 'open', open)
    if open == 0 then
      append_event(p, group, job_id, ARGV[5])
    end
  end,
  offers = function()
    set_timer(p, 'o', job_id, '', now_ms())
  end,
  live = function()
    redis.call('SREM', p .. 'live', job_id)
  end,
}
mends[ARGV[4]]()
return 1
