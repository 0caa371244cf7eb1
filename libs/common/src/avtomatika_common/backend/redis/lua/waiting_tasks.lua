#!lua flags=no-writes
--[[
  Some of the tasks of a job that are on the board: its own one, and those of open branches.

  KEYS  job
  ARGV  p, cursor ('0' first)
  Returns  {next cursor ('0' no more), {shape's meta, member, offer number, priority}, ...}
]]
local p = ARGV[1]
local page = redis.call('HSCAN', KEYS[1] .. ':br', ARGV[2], 'COUNT', '256')
local found = {page[1]}

local function add(task)
  local t = redis.call('HMGET', p .. 't:' .. task, 'state', 'meta', 'member', 'offer', 'prio')
  if t[1] == 'board' then
    found[#found + 1] = {t[2], t[3], t[4], t[5]}
  end
end

if ARGV[2] == '0' then
  local wait = redis.call('HGET', KEYS[1], 'wait') or ''
  if string.sub(wait, 1, 2) == 't:' then
    add(string.sub(wait, 3))
  end
end
for n = 1, #page[2], 2 do
  add(page[2][n])
end
return found
