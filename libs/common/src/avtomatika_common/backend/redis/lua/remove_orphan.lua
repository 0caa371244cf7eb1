#!lua flags=allow-oom
--@include tasks
--@include claims
--@include lanes
--[[
  Remove what belongs to no job, if that is still so; deliver an entry that waits for nothing, or is
  nobody's.

  KEYS  tm, deferred, quar, a lane, or the tasks held by a worker
  ARGV  p, 'timer' | 'deferred' | 'quarantine' | 'entry' | 'lease', name
  Returns  1 done, 0 it is none
]]
local p, name = ARGV[1], ARGV[3]
local remove = {
  timer = function()
    local kind, job_id, token = string.match(name, '^(%a)/([^/]*)/(.*)$')
    local owner = p .. 't:' .. token
    if kind == 'w' or kind == 'b' or kind == 'j' then
      owner = p .. 'j:' .. job_id
    elseif kind == 'e' then
      return redis.call('HEXISTS', p .. 'deferred', token) == 0 and redis.call('ZREM', KEYS[1], name)
    end
    return redis.call('EXISTS', owner) == 0 and redis.call('ZREM', KEYS[1], name)
  end,
  deferred = function()
    local packed = redis.call('HGET', KEYS[1], name)
    if not packed then
      return 0
    end
    local entry, job_id = cmsgpack.unpack(packed), ''
    for n = 2, #entry, 2 do
      job_id = entry[n] == 'j' and entry[n + 1] or job_id
    end
    if redis.call('ZSCORE', p .. 'tm', 'e/' .. job_id .. '/' .. name) then
      return 0
    end
    set_timer(p, 'e', job_id, name, now_ms())
    return 1
  end,
  quarantine = function()
    return redis.call('EXISTS', p .. 'j:' .. name) == 0 and redis.call('ZREM', KEYS[1], name)
  end,
  entry = function()
    local last = last_delivered(KEYS[1])
    local entry = last and redis.call('XRANGE', KEYS[1], name, name)[1]
    if not entry or #redis.call('XRANGE', KEYS[1], name, last, 'COUNT', '1') == 0
        or is_pending(KEYS[1], name) then
      return 0
    end
    local moved = redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
    redis.call('XDEL', KEYS[1], name)
    for n = 1, #entry[2], 2 do
      if entry[2][n] == 'j' then
        follow(p .. 'j:' .. entry[2][n + 1], name, moved)
      end
    end
    return 1
  end,
  lease = function()
    return redis.call('EXISTS', p .. 't:' .. name) == 0 and redis.call('HDEL', KEYS[1], name)
  end,
}
return remove[ARGV[2]]() or 0
