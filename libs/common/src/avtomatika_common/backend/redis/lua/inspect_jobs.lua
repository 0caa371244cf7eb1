#!lua flags=no-writes
--@include tasks
--@include marks
--[[
  What stands beside jobs, at one moment.

  KEYS  jobs
  ARGV  p, then for each job: id, since (ms) or '', what it waits for: '' | 't' task | 'w' timer |
        'a' approval | 'b' branches | 'c' sub-job, its id or token or cursor or '', about how many branches
  Returns  {now (ms), for each job {mark, may have an event, has a claim, has what acts on its deadline,
           its deadline has passed, ...}}; behind that
           t: task, state, is placed, has timer
           w: has timer
           a: is open, has timer
           b: open, branches, is staged, has timer of its offers, next cursor, then of each branch looked
              at as for t
           c: 'live' | 'ended' | 'absent'
]]
local p, now = ARGV[1], now_ms()
local heads = {}

-- When the oldest entry of a lane came, in ms; nothing came before.
local function oldest(group)
  if not heads[group] then
    local first = redis.call('XRANGE', p .. 'in:' .. group, '-', '+', 'COUNT', '1')[1]
    heads[group] = first and tonumber(string.match(first[1], '^%d+')) or math.huge
  end
  return heads[group]
end

local function has_timer(kind, job_id, token)
  return redis.call('ZSCORE', p .. 'tm', kind .. '/' .. job_id .. '/' .. token) and 1 or 0
end

local function has_claim(job_id, group, claim)
  if not claim or claim == '' then
    return 0
  end
  for _, lane in ipairs({'in:', 'new:'}) do
    local stream = p .. lane .. group
    if #redis.call('XRANGE', stream, claim, claim) > 0
      or redis.call('HEXISTS', p .. 'deferred', stream .. '|' .. claim) == 1 then
      return 1
    end
  end
  return 0
end

local function add_task(found, job_id, task_id)
  local t = read_task(p, task_id)
  if not t or t.job ~= job_id then
    -- A branch that waits for its next attempt has a timer instead.
    local waits = redis.call('ZSCORE', p .. 'tm', 'b/' .. job_id .. '/' .. task_id)
    if not waits then
      found[#found + 1] = task_id
      found[#found + 1] = 'absent'
      found[#found + 1] = 0
      found[#found + 1] = 0
    end
    return
  end
  local placed, timed
  if t.state == 'board' then
    placed = redis.call('ZSCORE', p .. 'board:' .. t.shape, t.member)
    timed = t.dispatch_due == '' or has_timer('d', job_id, task_id) == 1
  else
    placed = redis.call('HEXISTS', p .. 'held:' .. t.worker, task_id) == 1
    timed = has_timer('c', job_id, task_id) + has_timer('r', job_id, task_id) > 0
  end
  found[#found + 1] = task_id
  found[#found + 1] = t.state
  found[#found + 1] = placed and 1 or 0
  found[#found + 1] = timed and 1 or 0
end

local function add_branches(found, job, job_id, cursor, count)
  local staged = redis.call('EXISTS', job .. ':st')
  found[#found + 1] = tonumber(redis.call('HGET', job, 'open') or '0')
  found[#found + 1] = redis.call('HLEN', job .. ':br')
  found[#found + 1] = staged
  found[#found + 1] = has_timer('o', job_id, '')
  local cut = staged == 1 and {'0', {}} or redis.call('HSCAN', job .. ':br', cursor, 'COUNT', count)
  found[#found + 1] = cut[1]
  for n = 1, #cut[2], 2 do
    add_task(found, job_id, cut[2][n])
  end
end

local answers = {now}
for n, job in ipairs(KEYS) do
  local job_id, since, kind, subject, count = unpack(ARGV, 5 * n - 3, 5 * n + 1)
  local stored = redis.call('HMGET', job, 'group', 'claim', 'wait', 'deferred', 'deadline')
  local group = stored[1] or ''
  local on_its_way = tonumber(stored[4] or '0') > 0 or since == '' or oldest(group) <= tonumber(since)
  local deadline = tonumber(stored[5])
  local found = {mark_of(job), on_its_way and 1 or 0, has_claim(job_id, group, stored[2]),
    deadline and has_timer('j', job_id, '') or 1, deadline and deadline <= now and 1 or 0}
  if kind == 't' then
    add_task(found, job_id, subject)
  elseif kind == 'w' then
    found[#found + 1] = has_timer('w', job_id, subject)
  elseif kind == 'a' then
    found[#found + 1] = stored[3] == subject and 1 or 0
    found[#found + 1] = has_timer('w', job_id, subject)
  elseif kind == 'b' then
    add_branches(found, job, job_id, subject, count)
  elseif kind == 'c' then
    local child = redis.call('EXISTS', p .. 'j:' .. subject)
    found[#found + 1] = child == 0 and 'absent'
      or redis.call('SISMEMBER', p .. 'live', subject) == 1 and 'live' or 'ended'
  end
  answers[n + 1] = found
end
return answers
