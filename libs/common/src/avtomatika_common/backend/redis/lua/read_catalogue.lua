#!lua flags=no-writes
--[[
  KEYS  entries, log of versions
  Returns  {version, all entries}
]]
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', '1')
return {last[1] and last[1][1] or '0-0', redis.call('HVALS', KEYS[1])}
