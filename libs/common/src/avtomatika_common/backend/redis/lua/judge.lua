--[[ Shared: does a worker's word on a task count? Included by `--@include judge`, behind tasks. ]]

-- {answer = a `ResultAnswer` that changes nothing, or nil: it counts; closed = how the task was closed,
-- if it was; task, group = where it counts}
local function judge(p, job_id, task_id, worker)
  local job = p .. 'j:' .. job_id
  local stored = redis.call('HMGET', job, 'status', 'cancel', 'group')
  local status = stored[1]
  if not status then
    return {answer = 'job_not_found'}
  end
  local closed = redis.call('HGET', job .. ':done', task_id)
  if stored[2] == '1' or status == 'cancelled' then
    return {answer = 'job_cancelled', closed = closed}
  end
  if status == 'finished' or status == 'failed' or status == 'quarantined' then
    return {answer = 'job_already_terminated', closed = closed}
  end
  if closed == 'deadline|' then
    return {answer = 'deadline_exceeded', closed = closed}
  end
  local t = read_task(p, task_id)
  if not t or t.job ~= job_id then
    return {answer = 'stale_task', closed = closed}
  end
  if t.state ~= 'leased' or t.worker ~= worker then
    return {answer = 'worker_mismatch'}
  end
  return {task = t, group = stored[3]}
end
