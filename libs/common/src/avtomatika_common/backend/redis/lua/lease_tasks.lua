#!lua flags=allow-oom
--@include tasks
--[[
  Take tasks off the board for workers. The one timer of each is now its delivery timeout.

  KEYS  tasks
  ARGV  p, delivery timeout (ms), then for each task seven: id, job id, offer number, worker, its
        incarnation, until when the promise holds (ms) or '', nonce of this call
  Returns  for each {payload, leased at (ms), result timeout (ms), checkpoint or ''}; nil: not on the
           board with this offer, not wanted, or the promise or the registration is over
]]
local p, now = ARGV[1], now_ms()

local function leased(key, t, at)
  return {redis.call('HGET', key, 'payload'), tonumber(at), t.result_ms, t.checkpoint or ''}
end

local function lease(key, task_id, job_id, offer, worker, incarnation, until_ms, nonce)
  local t = read_task(p, task_id)
  if not t or t.job ~= job_id or t.offer ~= offer then
    return false
  end
  if t.state == 'leased' then
    return redis.call('HGET', key, 'nonce') == nonce and leased(key, t, t.leased_at)
  end
  if until_ms ~= '' and now >= tonumber(until_ms) then
    return false
  end
  if redis.call('HGET', p .. 'j:' .. job_id, 'cancel') == '1' then
    return false
  end
  -- A task that is being closed, a chunk at a time, is wanted by no open branch.
  if t.branch == '1' and redis.call('HEXISTS', p .. 'j:' .. job_id .. ':br', task_id) == 0 then
    return false
  end
  -- Leases of this worker up to here were returned already: one more would be overlooked.
  local returned = redis.call('GET', p .. 'gone:' .. worker)
  if returned and tonumber(returned) >= tonumber(incarnation) then
    return false
  end
  leave_board(p, t.shape, t.member)
  redis.call('HSET', key, 'state', 'leased', 'worker', worker, 'inc', incarnation, 'leased_at', now,
    'nonce', nonce)
  redis.call('HSET', p .. 'held:' .. worker, task_id, incarnation .. ':' .. job_id)
  clear_timer(p, 'd', job_id, task_id)
  set_timer(p, 'c', job_id, task_id, now + tonumber(ARGV[2]))
  redis.call('XADD', p .. 'out', '*', 'k', 'keep_hold', 'w', worker, 't', task_id, 'o', t.offer)
  return leased(key, t, now)
end

local answers = {}
for n, key in ipairs(KEYS) do
  local i = 7 * n - 4
  answers[n] = lease(key, unpack(ARGV, i, i + 6))
end
return answers
