#!lua flags=allow-oom
--[[
  Note where a schedule stands. Only for the holder of the lease.

  KEYS  schedule, lease
  ARGV  value of the lease for this holder and token, where it stands,
        '1' (a job is about to be made: not while it is paused) or ''
  Returns  'OK'; 'PAUSED'; 'LOST' the lease is lost
]]
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 'LOST'
end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'paused') == '1' then
  return 'PAUSED'
end
if redis.call('HEXISTS', KEYS[1], 'schedule') == 1 then
  redis.call('HSET', KEYS[1], 'standing', ARGV[2])
end
return 'OK'
