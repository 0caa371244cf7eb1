#!lua flags=no-writes
--@include workers
--[[
  Workers whose registration is live, as they last described themselves.

  KEYS  exp
  ARGV  w, cursor ('0' first), about how many at once; or w, '', the workers' ids
  Returns  {next cursor ('0' no more), {worker, room, tasks held, its hash}, ...}
]]
local w, now, alive = ARGV[1], now_ms(), {}
local found = {'0'}

local function add(worker, expiry)
  if expiry and tonumber(expiry) > now and is_whole(w, worker) then
    local hash = redis.call('HGETALL', w .. 'w:' .. worker)
    local held = redis.call('ZCOUNT', w .. 'hold:' .. worker, '(' .. now, '+inf')
    found[#found + 1] = {worker, room_of(credits(w, worker, now, alive)), held, hash}
  end
end

if ARGV[2] == '' then
  for n = 3, #ARGV do
    add(ARGV[n], redis.call('ZSCORE', KEYS[1], ARGV[n]))
  end
else
  local page = redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
  found[1] = page[1]
  for n = 1, #page[2], 2 do
    add(page[2][n], page[2][n + 1])
  end
end
return found
