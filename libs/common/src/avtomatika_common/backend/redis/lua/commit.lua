#!lua flags=allow-oom
--[[
  One step of one job with everything it causes, or nothing.

  KEYS  job
  ARGV  p, job id, fence as read, new fence, inbox stream, consumer, entry,
        'keep' (the job runs on under this entry) | 'requeue' (under a new one) | 'answer' |
        'beside' (answer the entry; the job goes on as it does, by whatever entry carries it),
        'dead' (the entry becomes a dead event),
        status, run, token of an open approval or `t:<task>` or '', head, data or '' (unchanged),
        only for 'requeue' its event, only for 'dead' the reason,
        then the effects, one after another: a name and as many arguments as it takes (see below)
  Returns  'OK', or the new claim after 'requeue'; 'AGAIN' this very commit is done; 'LOST' the entry
           is no longer pending for the consumer; 'STALE' the job was changed by somebody else
]]
local job, p, job_id, new_fence = KEYS[1], ARGV[1], ARGV[2], ARGV[4]
local stream, consumer, entry, mode, status = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]

local stored = redis.call('HMGET', job, 'fence', 'status', 'group', 'owner', 'claim')
if stored[1] == new_fence then
  return mode == 'requeue' and stored[5] or 'AGAIN'
end
local pending = redis.pcall('XPENDING', stream, 'g', entry, entry, '1')
if pending.err or #pending == 0 or pending[1][2] ~= consumer then
  return 'LOST'
end
if stored[1] ~= ARGV[3] then
  return 'STALE'
end

-- The plain step, running to running with nothing else to write, is done before the functions for
-- all the rest are even made.
if mode == 'keep' and not ARGV[14] and stored[2] == status then
  redis.call('HSET', job, 'fence', new_fence, 'head', ARGV[12], 'run', ARGV[10], 'claim', entry,
    'tries', '0', 'cancel', '')
  if ARGV[13] ~= '' then
    redis.call('HSET', job, 'data', ARGV[13])
  end
  return 'OK'
end

-- What came beside writes nothing but signals. The tries of a job that has a claim are those of the claim.
if mode == 'beside' then
  redis.call('HSET', job, 'fence', new_fence, 'signals', ARGV[15], 'sig_taken', ARGV[16])
  if stored[5] == '' then
    redis.call('HSET', job, 'tries', '0')
  end
  redis.call('XACK', stream, 'g', entry)
  redis.call('XDEL', stream, entry)
  return 'OK'
end

-- A script that fails midway keeps what it wrote, and after a fail-over some of what was laid may be
-- missing: so all of it must be there before it begins. This effect comes first.
local first = (mode == 'requeue' or mode == 'dead') and 15 or 14
if ARGV[first] == 'fan_out_staged' then
  local nonce, laid = ARGV[first + 1], tonumber(ARGV[first + 2])
  if redis.call('HLEN', job .. ':br:' .. nonce) ~= laid
      or redis.call('LLEN', job .. ':st:' .. nonce) ~= laid then
    return 'STALE'
  end
end

--@include tasks
--@include claims
--@include dead
local group, owner = stored[3], stored[4]

local function count(from, to)
  redis.call('HINCRBY', p .. 'count', from, -1)
  redis.call('HINCRBY', p .. 'count', to, 1)
  if owner ~= '' then
    redis.call('HINCRBY', p .. 'count', from .. '|' .. owner, -1)
    redis.call('HINCRBY', p .. 'count', to .. '|' .. owner, 1)
  end
end

local function mark_cancelled(child, nonce, event)
  local key = p .. 'j:' .. child
  local c = redis.call('HMGET', key, 'status', 'cancel', 'group', 'fence')
  if not c[1] or c[2] == '1' or redis.call('SISMEMBER', p .. 'live', child) == 0 then
    return
  end
  redis.call('HINCRBY', key, 'run', 1)
  local claim = append_event(p, c[3], child, event)
  redis.call('HSET', key, 'cancel', '1', 'fence', fence_after(c[4], nonce), 'claim', claim)
end

local claim = entry
if mode == 'dead' then
  local was = redis.call('HMGET', job, 'head', 'wait', 'cancel', 'input', 'data')
  local before = {'fence', new_fence, 'claimed', stored[5] == entry and '1' or '0',
    'status', stored[2], 'head', was[1], 'wait', was[2], 'cancel', was[3],
    'deadline', redis.call('ZSCORE', p .. 'tm', 'j/' .. job_id .. '/') or ''}
  if ARGV[15] == 'input' then  -- all of the document is replaced
    for _, word in ipairs({'input', was[4], 'data', was[5]}) do
      before[#before + 1] = word
    end
  end
  set_aside(p, stream, entry, ARGV[14], before)
end
if mode == 'keep' then
  redis.call('HSET', job, 'fence', new_fence, 'head', ARGV[12], 'status', status, 'run', ARGV[10],
    'claim', entry, 'tries', '0', 'wait', ARGV[11], 'cancel', '')
else
  if mode == 'requeue' then
    claim = redis.call('XADD', p .. 'in:' .. group, '*', 'j', job_id, 'e', ARGV[14])
  else
    claim = ''
  end
  redis.call('HSET', job, 'fence', new_fence, 'head', ARGV[12], 'status', status, 'run', ARGV[10],
    'claim', claim, 'tries', '0', 'wait', ARGV[11], 'cancel', '')
  if mode ~= 'dead' then
    answer(stream, entry)
  end
end
if ARGV[13] ~= '' then
  redis.call('HSET', job, 'data', ARGV[13])
end
if stored[2] ~= status then
  count(stored[2], status)
end

-- Most steps have one of these two effects; the others are made when they are needed.

-- task id, shape, meta, type, priority, payload, dispatch due (ms) or '', result timeout (ms),
-- heartbeat timeout (ms) or '', branch, checkpoint or ''
local function offer(i)
  offer_task(p, job_id, ARGV[i], {shape = ARGV[i + 1], meta = ARGV[i + 2], type = ARGV[i + 3],
    priority = ARGV[i + 4], payload = ARGV[i + 5], dispatch_due = ARGV[i + 6],
    result_ms = ARGV[i + 7], beat_ms = ARGV[i + 8], branch = ARGV[i + 9],
    checkpoint = ARGV[i + 10]})
  return i + 11
end

-- retention (s), 0: for ever, and how long to know its idempotency key then (s)
local function finish(i)
  redis.call('SREM', p .. 'live', job_id)
  if ARGV[i] ~= '0' then
    local key = redis.call('HGET', job, 'idempotency')
    if key then
      redis.call('EXPIRE', key, ARGV[i + 1])
    end
    for _, suffix in ipairs({'', ':prog', ':done'}) do
      redis.call('EXPIRE', job .. suffix, ARGV[i])
    end
    local rare = {job .. ':br', job .. ':st', job .. ':res', job .. ':ev', job .. ':sig'}
    if redis.call('EXISTS', unpack(rare)) > 0 then
      for _, key in ipairs(rare) do
        redis.call('EXPIRE', key, ARGV[i])
      end
    end
  end
  return i + 2
end

local function other_effects() return {
  -- how many open branches: forget an earlier fan-out
  fan_out = function(i)
    redis.call('UNLINK', job .. ':br', job .. ':res')
    redis.call('HSET', job, 'open', ARGV[i])
    return i + 1
  end,
  -- nonce, how many: the branches were laid beside the job, the watcher offers them in chunks
  fan_out_staged = function(i)
    redis.call('UNLINK', job .. ':br', job .. ':res', job .. ':st')
    for _, suffix in ipairs({':br', ':st'}) do
      redis.call('RENAME', job .. suffix .. ':' .. ARGV[i], job .. suffix)
      redis.call('PERSIST', job .. suffix)
    end
    redis.call('HSET', job, 'open', ARGV[i + 1])
    set_timer(p, 'o', job_id, '', now_ms())
    return i + 2
  end,
  -- task id, branch
  branch = function(i)
    redis.call('HSET', job .. ':br', ARGV[i], ARGV[i + 1])
    return i + 2
  end,
  -- token, due (ms)
  timer = function(i)
    set_timer(p, 'w', job_id, ARGV[i], ARGV[i + 1])
    return i + 2
  end,
  untimer = function(i)
    clear_timer(p, 'w', job_id, ARGV[i])
    return i + 1
  end,
  -- the job's own deadline
  undeadline = function(i)
    clear_timer(p, 'j', job_id, '')
    return i
  end,
  -- signals, how many were taken
  signals = function(i)
    redis.call('HSET', job, 'signals', ARGV[i], 'sig_taken', ARGV[i + 1])
    return i + 2
  end,
  -- task id
  close = function(i)
    local t = read_task(p, ARGV[i])
    if t then
      close_task(p, ARGV[i], t, 'closed|', true)
    end
    return i + 1
  end,
  -- many are closed in chunks by the watcher; none is handed out meanwhile
  close_branches = function(i)
    redis.call('UNLINK', job .. ':st')
    if redis.call('HLEN', job .. ':br') > 256 then
      redis.call('RENAME', job .. ':br', job .. ':br:' .. new_fence)
      set_timer(p, 'x', job_id, new_fence, now_ms())
      return i
    end
    for _, task_id in ipairs(redis.call('HKEYS', job .. ':br')) do
      local t = read_task(p, task_id)
      if t then
        close_task(p, task_id, t, 'closed|', true)
      end
      clear_timer(p, 'b', job_id, task_id)
    end
    redis.call('UNLINK', job .. ':br')
    return i
  end,
  -- child's id, fence, origin, head, data, group, event, fact or ''
  child = function(i)
    local key = p .. 'j:' .. ARGV[i]
    local new_claim = redis.call('XADD', p .. 'new:' .. ARGV[i + 5], '*', 'j', ARGV[i], 'e', ARGV[i + 6])
    redis.call('HSET', key, 'fence', ARGV[i + 1], 'input', ARGV[i + 2], 'head', ARGV[i + 3],
      'data', ARGV[i + 4], 'run', '0', 'tries', '0', 'claim', new_claim, 'wait', '', 'cancel', '',
      'status', 'pending', 'group', ARGV[i + 5], 'owner', owner)
    redis.call('SADD', p .. 'live', ARGV[i])
    redis.call('HINCRBY', p .. 'count', 'pending', 1)
    if owner ~= '' then
      redis.call('HINCRBY', p .. 'count', 'pending|' .. owner, 1)
    end
    if ARGV[i + 7] ~= '' then
      redis.call('XADD', p .. 'facts', '*', 'd', ARGV[i + 7])
    end
    return i + 8
  end,
  -- child's id, nonce, event
  cancel_child = function(i)
    mark_cancelled(ARGV[i], ARGV[i + 1], ARGV[i + 2])
    return i + 3
  end,
  -- parent's id, event
  parent = function(i)
    local parents_group = redis.call('HGET', p .. 'j:' .. ARGV[i], 'group')
    if parents_group then
      append_event(p, parents_group, ARGV[i], ARGV[i + 1])
    end
    return i + 2
  end,
  fact = function(i)
    redis.call('XADD', p .. 'facts', '*', 'd', ARGV[i])
    return i + 1
  end,
  notify = function(i)
    redis.call('XADD', p .. 'notify', '*', 'd', ARGV[i])
    return i + 1
  end,
  -- origin, of a document that is replaced
  input = function(i)
    redis.call('HSET', job, 'input', ARGV[i])
    return i + 1
  end,
  -- time (ms): onto the quarantine list
  quarantine = function(i)
    redis.call('ZADD', p .. 'quar', ARGV[i], job_id)
    return i + 1
  end,
} end

local others
local i = first
while ARGV[i] do
  local name = ARGV[i]
  if name == 'offer' then
    i = offer(i + 1)
  elseif name == 'finish' then
    i = finish(i + 1)
  else
    others = others or other_effects()
    i = others[name](i + 1)
  end
end
return mode == 'requeue' and claim or 'OK'
