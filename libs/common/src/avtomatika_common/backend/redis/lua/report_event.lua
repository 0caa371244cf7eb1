#!lua flags=allow-oom
--@include tasks
--@include judge
--[[
  Judge an event a worker tells of; where it counts, the first time, pass it on.

  KEYS  job
  ARGV  p, job id, task id, worker, event id, WorkerEventArrived or '', Notification or '',
        how many events are known
  Returns  a `ResultAnswer`, or 'again': it counted before
]]
local p, job_id, worker = ARGV[1], ARGV[2], ARGV[4]
local known, mark = KEYS[1] .. ':ev', worker .. '|' .. ARGV[5]
if redis.call('ZSCORE', known, mark) then
  return 'again'
end
local judged = judge(p, job_id, ARGV[3], worker)
if judged.answer then
  return judged.answer
end
redis.call('ZADD', known, now_ms(), mark)
redis.call('ZREMRANGEBYRANK', known, 0, -tonumber(ARGV[8]) - 1)
if ARGV[6] ~= '' then
  append_event(p, judged.group, job_id, ARGV[6])
end
if ARGV[7] ~= '' then
  redis.call('XADD', p .. 'notify', '*', 'd', ARGV[7])
end
return 'ok'
