#!lua
--@include workers
--[[
  A poll of the worker is open at a gateway: it may be given as many tasks as it has room for.

  KEYS  exp
  ARGV  w, worker, `<poll>|<room>|<gateway>`, until (ms), ttl of the registration (ms)
  Returns  incarnation; nil: it is not registered
]]
local w, worker, now = ARGV[1], ARGV[2], now_ms()
if not is_live(w, worker, now) then
  return false
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[5]), worker)
redis.call('ZREMRANGEBYSCORE', w .. 'cred:' .. worker, '-inf', now)
redis.call('ZADD', w .. 'cred:' .. worker, ARGV[4], ARGV[3])
hint_places(w, worker, now)
return tonumber(redis.call('HGET', w .. 'w:' .. worker, 'inc'))
