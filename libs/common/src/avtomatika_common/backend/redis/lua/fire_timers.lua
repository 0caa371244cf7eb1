#!lua flags=allow-oom
--@include tasks
--@include claims
--[[
  Turn due timers into what they are for. Only for the holder of the lease.

  KEYS  tm
  ARGV  p, lease key, its value for this holder, at most so many
  Returns  how many fired, -1 the lease is lost
]]
local p = ARGV[1]
if redis.call('GET', ARGV[2]) ~= ARGV[3] then
  return -1
end
local now = now_ms()

local function time_out(task_id, timeout)
  local t = read_task(p, task_id)
  if not t then
    return
  end
  local group = redis.call('HGET', p .. 'j:' .. t.job, 'group')
  local event = {event = 'task_timed_out', at = now / 1000, task_id = task_id, fresh_id = '',
    timeout = timeout}
  if t.worker then
    event.worker_id = t.worker
  end
  local reason = redis.call('HGET', p .. 't:' .. task_id, 'reason')
  if reason then
    event.waiting_reason = reason
  end
  close_task(p, task_id, t, 'deadline|', true)
  if group then
    append_event(p, group, t.job, cmsgpack.pack(event), t.branch, t.leased_at, t.checkpoint)
  end
end

local fire = {
  w = function(job_id, token)
    local job = p .. 'j:' .. job_id
    local stored = redis.call('HMGET', job, 'group', 'wait')
    if stored[1] then
      if stored[2] == token then
        redis.call('HSET', job, 'wait', '')
      end
      append_event(p, stored[1], job_id,
        cmsgpack.pack({event = 'timer_fired', at = now / 1000, token = token, fresh_id = ''}))
    end
  end,
  b = function(job_id, token)
    local group = redis.call('HGET', p .. 'j:' .. job_id, 'group')
    if group then
      append_event(p, group, job_id,
        cmsgpack.pack({event = 'timer_fired', at = now / 1000, token = token, fresh_id = ''}), '1')
    end
  end,
  e = function(job_id, token)
    local job = p .. 'j:' .. job_id
    local packed = redis.call('HGET', p .. 'deferred', token)
    if packed then
      redis.call('HDEL', p .. 'deferred', token)
      local entry = cmsgpack.unpack(packed)
      local moved = redis.call('XADD', entry[1], '*', unpack(entry, 2))
      if follow(job, string.match(token, '|(.*)$'), moved) then
        redis.call('HINCRBY', job, 'deferred', -1)
      end
    end
  end,
  -- The job is marked as by a cancel, whether it is marked or not.
  j = function(job_id)
    local job = p .. 'j:' .. job_id
    if redis.call('SISMEMBER', p .. 'live', job_id) == 0 then
      return
    end
    local stored = redis.call('HMGET', job, 'group', 'fence')
    local claim = append_event(p, stored[1], job_id,
      cmsgpack.pack({event = 'job_timed_out', at = now / 1000}))
    redis.call('HINCRBY', job, 'run', 1)
    redis.call('HSET', job, 'cancel', '1', 'fence', fence_after(stored[2], 'late' .. now),
      'claim', claim)
  end,
  d = function(_, task_id)
    time_out(task_id, 'dispatch')
  end,
  r = function(_, task_id)
    time_out(task_id, 'result')
  end,
  c = function(_, task_id)
    local t = read_task(p, task_id)
    if t and t.state == 'leased' then
      redis.call('HDEL', p .. 'held:' .. t.worker, task_id)
      redis.call('XADD', p .. 'out', '*', 'k', 'end_hold', 'w', t.worker, 't', task_id,
        'o', t.offer)
      return_to_board(p, task_id, t)
    end
  end,
}

-- Walks of a large fan-out, a chunk at a time: what is left comes back at once.
local CHUNK = 256

function fire.o(job_id)
  local job = p .. 'j:' .. job_id
  local stored = redis.call('HMGET', job, 'status', 'cancel')
  if stored[1] ~= 'waiting_for_parallel_tasks' or stored[2] == '1' then
    redis.call('UNLINK', job .. ':st')
    return
  end
  for _, packed in ipairs(redis.call('LPOP', job .. ':st', CHUNK) or {}) do
    local o = cmsgpack.unpack(packed)
    offer_task(p, job_id, o[1], {shape = o[2], meta = o[3], type = o[4], priority = o[5],
      payload = o[6], dispatch_due = o[7], result_ms = o[8], beat_ms = o[9], branch = '1',
      checkpoint = ''})
  end
  if redis.call('EXISTS', job .. ':st') == 1 then
    set_timer(p, 'o', job_id, '', now)
  end
end

function fire.x(job_id, token)
  local branches = p .. 'j:' .. job_id .. ':br:' .. token
  for _, task_id in ipairs(redis.call('HRANDFIELD', branches, CHUNK) or {}) do
    local t = read_task(p, task_id)
    if t then
      close_task(p, task_id, t, 'closed|', true)
    end
    clear_timer(p, 'b', job_id, task_id)
    redis.call('HDEL', branches, task_id)
  end
  if redis.call('EXISTS', branches) == 1 then
    set_timer(p, 'x', job_id, token, now)
  end
  local left = redis.call('TTL', p .. 'j:' .. job_id)
  if left > 0 then
    redis.call('EXPIRE', p .. 'j:' .. job_id .. ':done', left)
  elseif left == -2 then
    redis.call('UNLINK', p .. 'j:' .. job_id .. ':done')
  end
end

local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', '0', ARGV[4])
local fired = 0
for _, member in ipairs(due) do
  redis.call('ZREM', KEYS[1], member)
  local kind, job_id, token = string.match(member, '^(%a)/([^/]*)/(.*)$')
  fire[kind](job_id, token)
  fired = fired + 1
  if kind == 'o' or kind == 'x' then
    break
  end
end
return fired
