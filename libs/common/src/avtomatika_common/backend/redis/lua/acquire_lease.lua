#!lua flags=allow-oom
--[[
  Become the only holder of a lease; its token counts up with each holder.

  KEYS  lease, its token counter
  ARGV  holder, how long (ms)
  Returns  token (also when the caller holds it already); nil: somebody else holds it
]]
local value = redis.call('GET', KEYS[1])
if value then
  local token, holder = string.match(value, '^(%d+):(.*)$')
  if holder ~= ARGV[1] then
    return false
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(token)
end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token .. ':' .. ARGV[1], 'PX', ARGV[2])
return token
