#!lua flags=allow-oom
--@include tasks
--[[
  Take a task off the board for a worker. Its one timer is now the delivery timeout.

  KEYS  task
  ARGV  p, task id, job id, offer number, worker, its incarnation, delivery timeout (ms),
        nonce of this call
  Returns  {payload, leased at (ms), result timeout (ms), checkpoint or ''}; nil: not on the board with this offer, not wanted, or the registration is over
]]
local p, task_id, job_id, worker = ARGV[1], ARGV[2], ARGV[3], ARGV[5]

local function leased(t, at)
  return {t.payload, tonumber(at), t.result_ms, t.checkpoint or ''}
end

local t = read_task(p, task_id)
if not t or t.job ~= job_id or t.offer ~= ARGV[4] then
  return false
end
if t.state == 'leased' then
  return redis.call('HGET', KEYS[1], 'nonce') == ARGV[8] and leased(t, t.leased_at)
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
if returned and tonumber(returned) >= tonumber(ARGV[6]) then
  return false
end
local now = now_ms()
leave_board(p, t.shape, t.member)
redis.call('HSET', KEYS[1], 'state', 'leased', 'worker', worker, 'inc', ARGV[6], 'leased_at', now,
  'nonce', ARGV[8])
redis.call('HSET', p .. 'held:' .. worker, task_id, ARGV[6] .. ':' .. job_id)
clear_timer(p, 'd', job_id, task_id)
set_timer(p, 'c', job_id, task_id, now + tonumber(ARGV[7]))
redis.call('XADD', p .. 'out', '*', 'k', 'keep_hold', 'w', worker, 't', task_id, 'o', t.offer)
return leased(t, now)
