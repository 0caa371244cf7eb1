#!lua flags=allow-oom
--@include workers
--[[
  Polls of workers are open at a gateway: each may bring as many tasks as it has room for.

  KEYS  exp, once for each poll
  ARGV  w, then for each poll four: worker, `<poll>|<room>|<gateway>`, until (ms), ttl of the
        registration (ms)
  Returns  for each the worker's incarnation; nil: it is not registered
]]
local w, now, answers = ARGV[1], now_ms(), {}
local incarnations, changed = {}, {}

-- What is asked of each worker once, however many polls of it there are.
local function incarnation_of(worker)
  if not is_registered(w, worker) then
    return false
  end
  if not is_live(w, worker, now) then
    hint(w, worker)
  end
  redis.call('ZREMRANGEBYSCORE', w .. 'cred:' .. worker, '-inf', now)
  changed[worker] = true
  return tonumber(redis.call('HGET', w .. 'w:' .. worker, 'inc')) or false
end

for n = 1, #KEYS do
  local i = 4 * n - 2
  local worker = ARGV[i]
  if incarnations[worker] == nil then
    incarnations[worker] = incarnation_of(worker)
  end
  if incarnations[worker] then
    redis.call('ZADD', KEYS[n], now + tonumber(ARGV[i + 3]), worker)
    redis.call('ZADD', w .. 'cred:' .. worker, ARGV[i + 2], ARGV[i + 1])
  end
  answers[n] = incarnations[worker]
end
hint_places(w, changed, now)
return answers
