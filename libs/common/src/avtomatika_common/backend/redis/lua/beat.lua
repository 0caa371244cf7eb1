#!lua flags=allow-oom
--@include workers
--[[
  Renew a registration and merge what changed of the worker's document.

  KEYS  exp
  ARGV  w, worker, ttl (ms), number of pairs, '1' if its current tasks follow, else '0',
        pairs of its hash: field, value; then the tasks it says it has
  Returns  {hash of the worker, tasks it should stop, how many it holds or was promised};
           nil: it is not registered
]]
local w, worker, pairs_end = ARGV[1], ARGV[2], 5 + 2 * tonumber(ARGV[4])
local key, cancel, now = w .. 'w:' .. worker, w .. 'cancel:' .. ARGV[2], now_ms()
if not is_registered(w, worker) then
  return false
end
local matters = not is_live(w, worker, now)
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), worker)

for n = 6, pairs_end, 2 do
  if redis.call('HGET', key, ARGV[n]) ~= ARGV[n + 1] then
    redis.call('HSET', key, ARGV[n], ARGV[n + 1])
    matters = matters or ARGV[n] ~= 'd:current_tasks'
  end
end
if matters then
  hint(w, worker)
end

local to_stop = redis.call('ZRANGE', cancel, '0', '511')
if ARGV[5] == '1' and #to_stop > 0 then
  local named, rest = {}, {}
  for n = pairs_end + 1, #ARGV do
    named[ARGV[n]] = true
  end
  for _, task in ipairs(to_stop) do
    if named[task] then
      rest[#rest + 1] = task
    else
      redis.call('ZREM', cancel, task)
    end
  end
  to_stop = rest
end
local held = redis.call('ZCOUNT', w .. 'hold:' .. worker, '(' .. now, '+inf')
return {redis.call('HGETALL', key), to_stop, held}
