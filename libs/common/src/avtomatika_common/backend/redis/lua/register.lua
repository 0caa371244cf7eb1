#!lua flags=allow-oom
--@include workers
--[[
  A new registration of a worker; an earlier one, live or not, is given up as lost,
  and the socket of a live one is closed.

  KEYS  exp
  ARGV  w, worker, ttl (ms), nonce of this call, then pairs of its hash: field, value
  Returns  {incarnation}, or {incarnation, hash of the live registration it took over}
]]
local w, worker, nonce = ARGV[1], ARGV[2], ARGV[4]
local key, now = w .. 'w:' .. worker, now_ms()
local stored = redis.call('HMGET', key, 'inc', 'nonce')
if stored[2] == nonce then
  return {tonumber(stored[1])}
end

local replaced, fields = false, {}
if stored[1] then
  local hash = redis.call('HGETALL', key)
  if is_live(w, worker, now) then
    replaced = hash
    close_socket(w, worker)
  end
  for n = 1, #hash, 2 do
    if string.sub(hash[n], 1, 2) == 't:' then
      fields[#fields + 1] = hash[n]
      fields[#fields + 1] = hash[n + 1]
    end
  end
  end_registration(w, worker, true)
end
local incarnation = redis.call('INCR', w .. 'inc')
redis.call('HSET', key, 'inc', incarnation, 'nonce', nonce, unpack(fields))
for n = 5, #ARGV, 2 do
  redis.call('HSET', key, ARGV[n], ARGV[n + 1])
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), worker)
hint(w, worker)
return {incarnation, replaced or nil}
