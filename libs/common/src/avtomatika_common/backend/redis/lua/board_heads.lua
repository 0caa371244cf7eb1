#!lua flags=no-writes
--[[
  The first tasks of some shapes of the board.

  KEYS  shapes
  ARGV  p, cursor ('0' first), tasks of each shape
  Returns  {next cursor ('0' no more), {shape's meta, how many tasks it has,
           {member, job, offer number, priority}, ...}, ...}
]]
local p = ARGV[1]
local page = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', math.max(1, math.floor(512 / ARGV[3])))
local shapes = page[2]
-- A small hash comes as a whole; then each shape gives less, so that the script stays small.
local each = math.max(1, math.min(tonumber(ARGV[3]), math.floor(1024 / #shapes)))
local found = {page[1]}
for n = 1, #shapes, 2 do
  local row = {shapes[n + 1], redis.call('ZCARD', p .. 'board:' .. shapes[n])}
  for _, member in ipairs(redis.call('ZRANGE', p .. 'board:' .. shapes[n], '0', each - 1)) do
    local t = redis.call('HMGET', p .. 't:' .. string.sub(member, 18), 'job', 'offer', 'prio')
    if t[1] then
      row[#row + 1] = {member, t[1], t[2], t[3]}
    end
  end
  found[#found + 1] = row
end
return found
