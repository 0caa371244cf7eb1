#!lua flags=allow-oom
--[[
  Note the job that somebody made of a schedule out of its time, if the schedule is there.

  KEYS  schedule, names
  ARGV  name, job id, when (Unix seconds)
]]
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'asked_job', ARGV[2], 'asked_at', ARGV[3])
end
return 1
