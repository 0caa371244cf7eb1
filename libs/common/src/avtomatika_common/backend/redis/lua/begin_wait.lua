#!lua flags=allow-oom
--[[
  Write something that the replicas get behind all that was written before: WAIT looks no further than
  to the last write of its own connection, and a call that is a repeat writes nothing.

  KEYS  meta
]]
return redis.call('HSET', KEYS[1], 'waited', '1')
