#!lua flags=allow-oom
--[[
  Make the consumer group of a stream, at its start; also when Redis is full: what is in it has to go on.

  KEYS  stream
  Returns  1 made, 0 there was one
]]
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], 'g', '0', 'MKSTREAM')
return made.err and 0 or 1
