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
for n = 1, #KEYS do
  local i = 4 * n - 2
  local worker = ARGV[i]
  if is_registered(w, worker) then
    if not is_live(w, worker, now) then
      hint(w, worker)
    end
    redis.call('ZADD', KEYS[n], now + tonumber(ARGV[i + 3]), worker)
    redis.call('ZREMRANGEBYSCORE', w .. 'cred:' .. worker, '-inf', now)
    redis.call('ZADD', w .. 'cred:' .. worker, ARGV[i + 2], ARGV[i + 1])
    answers[n] = tonumber(hint_places(w, worker, now)) or false
  else
    answers[n] = false
  end
end
return answers
