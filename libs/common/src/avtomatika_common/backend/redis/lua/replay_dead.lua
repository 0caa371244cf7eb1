#!lua flags=allow-oom
--@include apart
--@include tasks
--@include reopen
--[[
  Put a dead event back into its lane. A job that was quarantined with it, and that nothing has changed
  since, is again what it was; not one whose open branches were closed then.

  KEYS  dead
  ARGV  p, id of the dead event, nonce of this call
  Returns  1 done, also when this very call did it before, 0 no such dead event
]]
local p = ARGV[1]
local replayed = p .. 'replayed:' .. ARGV[2]
local read = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if #read == 0 then
  return redis.call('GET', replayed) == ARGV[3] and 1 or 0
end
redis.call('SET', replayed, ARGV[3], 'EX', '60')
local kept, flat, n = {}, read[1][2], 1
while flat[n] ~= '' do
  kept[flat[n]] = flat[n + 1]
  n = n + 2
end
local job_id, entry = nil, {}
for i = n + 2, #flat, 2 do
  if flat[i] == 'j' then
    job_id = flat[i + 1]
  end
  if flat[i] ~= 'x' then  -- its tries begin anew
    entry[#entry + 1] = flat[i]
    entry[#entry + 1] = flat[i + 1]
  end
end
local job = p .. 'j:' .. (job_id or '')
local now = redis.call('HMGET', job, 'fence', 'owner', 'open', 'claim')
local moved = add_apart(kept.stream, now[4], unpack(entry))
redis.call('XDEL', KEYS[1], ARGV[2])

local is_closed = kept.status == 'waiting_for_parallel_tasks' and now[3] and now[3] ~= '0'
if not kept.fence or now[1] ~= kept.fence or is_closed then
  return 1
end
local fence = (tonumber(string.match(kept.fence, '^%d+')) + 1) .. ':' .. ARGV[3]
redis.call('HSET', job, 'fence', fence, 'status', kept.status, 'head', kept.head, 'wait', kept.wait,
  'cancel', kept.cancel, 'claim', kept.claimed == '1' and moved or '', 'tries', '0')
for _, part in ipairs({'input', 'data'}) do
  if kept[part] then
    redis.call('HSET', job, part, kept[part])
  end
end
reopen_job(p, job_id, now[2], 'quarantined', kept.status, kept.deadline or '')
return 1
