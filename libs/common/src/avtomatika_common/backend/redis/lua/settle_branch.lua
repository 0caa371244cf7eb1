#!lua flags=allow-oom
--@include tasks
--@include claims
--[[
  A branch of a fan-out ended, or goes on under another task; the last end wakes the job.

  KEYS  job
  ARGV  p, job id, inbox stream, consumer, entry, current task id, fact or '',
        'result', BranchResult, BranchesDone event
     or 'retry', Branch, next task id, due (ms)
     or 'offer', Branch, next task id, then as the effect `offer` of commit
  Returns  'OK' (also when the branch is not open with this task any more), 'LOST'
]]
local job, p, job_id, task_id = KEYS[1], ARGV[1], ARGV[2], ARGV[6]
if not is_mine(ARGV[3], ARGV[4], ARGV[5]) then
  return 'LOST'
end
local stored = redis.call('HMGET', job, 'cancel', 'group')
if stored[1] ~= '1' and redis.call('HEXISTS', job .. ':br', task_id) == 1 then
  redis.call('HDEL', job .. ':br', task_id)
  if ARGV[8] == 'result' then
    redis.call('HSET', job .. ':res', task_id, ARGV[9])
    if redis.call('HINCRBY', job, 'open', -1) == 0 then
      append_event(p, stored[2], job_id, ARGV[10])
    end
  else
    redis.call('HSET', job .. ':br', ARGV[10], ARGV[9])
    if ARGV[8] == 'retry' then
      set_timer(p, 'b', job_id, ARGV[10], ARGV[11])
    else
      offer_task(p, job_id, ARGV[10], {shape = ARGV[11], meta = ARGV[12], type = ARGV[13],
        priority = ARGV[14], payload = ARGV[15], dispatch_due = ARGV[16], result_ms = ARGV[17],
        beat_ms = ARGV[18], branch = '1', checkpoint = ARGV[20]})
    end
  end
  if ARGV[7] ~= '' then
    redis.call('XADD', p .. 'facts', '*', 'd', ARGV[7])
  end
end
answer(ARGV[3], ARGV[5])
return 'OK'
