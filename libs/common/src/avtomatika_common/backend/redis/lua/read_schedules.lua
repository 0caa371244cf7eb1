#!lua flags=no-writes
--[[
  KEYS  names, log of changes
  ARGV  prefix of a schedule's key, after which name (512 at most are read), '' = from the first
  Returns  {version, {fields of a schedule as HMGET gives them, …}, last name or '' (no more)}
]]
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', '1')
local names = redis.call('SMEMBERS', KEYS[1])
table.sort(names)
local found, more = {}, ''
for _, name in ipairs(names) do
  if ARGV[2] == '' or name > ARGV[2] then
    if #found == 512 then
      break
    end
    found[#found + 1] = redis.call('HMGET', ARGV[1] .. name, 'schedule', 'standing', 'paused',
      'resumed_at', 'asked_at', 'asked_job')
    more = name
  end
end
return {last[1] and last[1][1] or '0-0', found, #found == 512 and more or ''}
