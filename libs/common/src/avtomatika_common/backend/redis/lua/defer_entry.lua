#!lua flags=allow-oom
--@include tasks
--@include claims
--[[
  Deliver an entry again later: it waits as a timer beside the stream; a claim follows it.

  KEYS  job
  ARGV  p, job id, inbox stream, consumer, entry, delay (ms)
  Returns  1 done, 0 not pending for the consumer
]]
local p, stream, entry = ARGV[1], ARGV[3], ARGV[5]
if not is_mine(stream, ARGV[4], entry) then
  return 0
end
local read = redis.call('XRANGE', stream, entry, entry)
if #read > 0 then
  -- An id is one stream's only: two lanes use the same ones.
  local token = stream .. '|' .. entry
  redis.call('HSET', p .. 'deferred', token, cmsgpack.pack({stream, unpack(read[1][2])}))
  set_timer(p, 'e', ARGV[2], token, now_ms() + tonumber(ARGV[6]))
end
answer(stream, entry)
return 1
