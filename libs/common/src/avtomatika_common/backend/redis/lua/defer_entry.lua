#!lua flags=allow-oom
--@include tasks
--@include claims
--[[
  Deliver an entry again later: it waits as a timer beside the stream; a claim follows it.

  KEYS  job
  ARGV  p, job id, inbox stream, consumer, entry, delay (ms), '1' if this was a try that failed
  Returns  1 done, 0 not pending for the consumer
]]
-- As in take_over: a branch's event knows its own tries, the job those of all others.
local function count_try(job, fields)
  local is_branch, at = false, nil
  for n = 1, #fields, 2 do
    is_branch = is_branch or fields[n] == 'b'
    at = fields[n] == 'x' and n or at
  end
  if is_branch then
    at = at or #fields + 1
    fields[at], fields[at + 1] = 'x', tostring(tonumber(fields[at + 1] or '0') + 1)
  elseif redis.call('EXISTS', job) == 1 then
    redis.call('HINCRBY', job, 'tries', 1)
  end
end

local p, stream, entry = ARGV[1], ARGV[3], ARGV[5]
if not is_mine(stream, ARGV[4], entry) then
  return 0
end
local read = redis.call('XRANGE', stream, entry, entry)
if #read > 0 then
  local fields = read[1][2]
  if ARGV[7] == '1' then
    count_try(KEYS[1], fields)
  end
  -- An id is one stream's only: two lanes use the same ones.
  local token = stream .. '|' .. entry
  redis.call('HSET', p .. 'deferred', token, cmsgpack.pack({stream, unpack(fields)}))
  if redis.call('EXISTS', KEYS[1]) == 1 then
    redis.call('HINCRBY', KEYS[1], 'moved', 1)
    redis.call('HINCRBY', KEYS[1], 'deferred', 1)
  end
  set_timer(p, 'e', ARGV[2], token, now_ms() + tonumber(ARGV[6]))
end
answer(stream, entry)
return 1
