#!lua flags=no-writes
--[[
  How many tasks wait in some shapes of the board.

  KEYS  shapes
  ARGV  p, cursor ('0' first)
  Returns  {next cursor ('0' no more), how many}
]]
local page = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', '512')
local total = 0
for n = 1, #page[2], 2 do
  total = total + redis.call('ZCARD', ARGV[1] .. 'board:' .. page[2][n])
end
return {page[1], total}
